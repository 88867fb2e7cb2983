"""The pair dataset on disk: the last step that writes it (`data_gen/pack.py`), and how everything else opens it.

    dataset = open_dataset("data/pairs")          # DatasetDict: train, validation, test
    rows = load_pairs("data/pairs", "train")      # one row a (photo, twin), records.PAIR_FEATURES
    dataset_kind("data/pairs")                    # "pairs" or "images"

The folder appears whole or not at all: it is written beside its place and renamed. `encode.py` does what is done to
pixels, `splits.py` says which photo goes where, `card.py` tells it all to a reader.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from vlm_detect.config import write_run_json
from vlm_detect.data.caption_step import FROM_PROMPTS
from vlm_detect.data.card import pair_card, prompted_card
from vlm_detect.data.dataset_files import SplitWriter, written_whole
from vlm_detect.data.decode import decode_image, standard_encoding
from vlm_detect.data.encode import EncodeConfig, crop_to_aspect, describe_jpeg, encode_image, like_source, resize
from vlm_detect.data.selection import check_hold_out, is_held_out
from vlm_detect.data.shards import read_plan, read_rejects, read_rows, write_rows
from vlm_detect.data.sources import load_dataset
from vlm_detect.data.splits import SPLITS, Split, find_duplicates, join_groups, split_groups
from vlm_detect.errors import UserError
from vlm_detect.records import IMAGE_FEATURES, PAIR_FEATURES, REJECT_FEATURES, Reject


@dataclass(frozen=True)
class PackConfig:
    """What the dataset looks like."""

    size: int | None = field(
        default=None, metadata={"help": "Side of the square of as many pixels as both members; by default the twin's."}
    )
    validation: float = field(default=0.1, metadata={"help": "Part of the photos for validation."})
    test: float = field(default=0.2, metadata={"help": "Part of the photos for the test."})
    duplicate_bits: int = field(default=3, metadata={"help": "Photos whose 64-bit hashes differ by no more are one."})
    hold_out: list[str] = field(
        default_factory=list, metadata={"help": "source=GLOB of photos that go to a split of their own, unseen."}
    )
    pairs_per_file: int = field(default=5000, metadata={"help": "Pairs in one parquet file."})


@dataclass(frozen=True)
class Packed:
    """What came of it: numbers by split, and of rejects by reason."""

    rows: dict[str, int]
    unit: str  # pairs or images
    groups: dict[str, int]
    rejects: dict[str, int]

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count} of {self.groups[split]} groups" for split, count in self.rows.items())
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.rejects.items())
        return f"{sum(self.rows.values())} {self.unit} ({splits}); left out: {left_out or 'none'}"


def pack_pairs(renders: Path, out: Path, config: PackConfig, encode: EncodeConfig, settings: dict[str, Any]) -> Packed:
    """Write the dataset `out` from the finished render step in `renders`.

    `settings` are those of all steps, for `run.json`: by them a rerun sees that nothing is left to do.
    """
    check_hold_out(config.hold_out)
    plan = read_plan(renders)
    rejects = [reject for shard in range(plan.shards) for reject in read_rejects(renders, shard)]
    splits = _split_photos(renders, plan.shards, config, rejects)
    if not splits:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())
        raise UserError(
            f"none of the {plan.items} photos could be made a pair of ({reasons or 'nothing was rendered'})"
        )
    # what was drawn from prompts is no photo's twin: then a row is an image
    is_paired = not any(row["captioner"] == FROM_PROMPTS for row in read_rows(renders, 0, ["captioner"]))
    with written_whole(out) as partial:
        return _write(renders, partial, plan.shards, splits, rejects, config, encode, settings, is_paired)


def _write(
    renders: Path,
    partial: Path,
    shards: int,
    splits: dict[str, tuple[Split, str] | None],
    rejects: list[Reject],
    config: PackConfig,
    encode: EncodeConfig,
    settings: dict[str, Any],
    is_paired: bool,
) -> Packed:
    writer = SplitWriter(partial / "data", PAIR_FEATURES if is_paired else IMAGE_FEATURES, config.pairs_per_file)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("split", "kind", "licence", "made")}
    groups: dict[str, set[str]] = {}
    bar = tqdm(desc="pack", unit="pair", disable=None, leave=False)
    for shard in range(shards):
        for photo in read_rows(renders, shard):
            if (place := splits.get(photo["id"])) is None:
                continue
            split, group = place
            # the second of two equal files would otherwise be packed as well
            splits[photo["id"]] = None
            for row in _pair_rows(photo, group, config, encode):
                written = [row] if is_paired else _two_images(row, photo["object_class"])
                for row_written in written:
                    writer.write(split, row_written)
                groups.setdefault(split, set()).add(group)
                counts["split"][split] += len(written)
                counts["kind"][row["kind"]] += 1
                counts["licence"][row["source"]["licence"] or "not stated"] += 1
                made = [name for name in (photo["captioner"], photo["generator"]) if name]
                counts["made"][" and ".join(made)] += 1
                bar.update()
    bar.close()
    files = writer.close()
    write_rows(partial / "rejects.parquet", [asdict(reject) for reject in rejects], REJECT_FEATURES)

    rows: dict[str, int] = {split: counts["split"][split] for split in SPLITS if counts["split"][split]}
    packed = Packed(
        rows=rows,
        unit="pairs" if is_paired else "images",
        groups={split: len(groups[split]) for split in rows},
        rejects=dict(Counter(reject.reason for reject in rejects)),
    )
    card = (pair_card if is_paired else prompted_card)(
        rows=packed.rows,
        groups=packed.groups,
        kinds=counts["kind"],
        rejects=packed.rejects,
        licences=counts["licence"],
        made={"captions and twins by": " and ".join(counts["made"]), "encoder": json.dumps(encode.describe())},
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    write_run_json(partial, settings, **asdict(packed), files=files)
    return packed


def _split_photos(
    renders: Path, shards: int, config: PackConfig, rejects: list[Reject]
) -> dict[str, tuple[Split, str] | None]:
    """id -> (split, group) of each photo to pack; the repeated ones are appended to `rejects`."""
    groups: dict[str, str] = {}
    phashes: dict[str, str] = {}
    names: dict[str, str] = {}
    donors: dict[str, list[str]] = {}
    for shard in range(shards):
        for row in read_rows(renders, shard, ["id", "group", "phash", "source", "twins.list.element.edit"]):
            name = row["source"]["path_or_id"]
            if row["id"] in groups:
                rejects.append(Reject(name, "pack", "duplicate", f"the same bytes as {names[row['id']]}"))
                continue
            groups[row["id"]], phashes[row["id"]], names[row["id"]] = row["group"], row["phash"], name
            donors[row["id"]] = [
                twin["edit"]["donor"] for twin in row["twins"] if twin["edit"] and twin["edit"]["donor"]
            ]
    for photo, first in find_duplicates(phashes, groups, distance=config.duplicate_bits).items():
        rejects.append(Reject(names[photo], "pack", "near_duplicate", f"looks like {names[first]}"))
        # what was spliced from a photo that is left out comes from the one that it looks like
        groups[photo] = groups[first]
        names.pop(photo)
    links = ((photo, donor) for photo, given in donors.items() for donor in given if donor in groups)
    merged = join_groups(groups, links)
    held_out = {merged[photo] for photo, name in names.items() if is_held_out(config.hold_out, "", name)}
    if config.hold_out and not held_out:
        raise UserError(f"--hold_out {' '.join(config.hold_out)}: no photo is from that source")
    kept = {photo: merged[photo] for photo in groups if photo in names}
    splits = split_groups(set(kept.values()) - held_out, validation=config.validation, test=config.test)
    return {photo: ("unseen" if group in held_out else splits[group], group) for photo, group in kept.items()}


def _pair_rows(
    photo: Mapping[str, Any], group: str, config: PackConfig, encode: EncodeConfig
) -> Iterator[dict[str, Any]]:
    """The rows of one photo: each of its twins beside what it was made from, both brought to one size and encoding."""
    decoded = decode_image(photo["image"]["bytes"])
    jpeg = decoded.jpeg
    if jpeg is None and photo["source"]["jpeg_quality"]:
        jpeg = standard_encoding(photo["source"]["jpeg_quality"])  # a PNG that was cut from a JPEG
    drawn = {(twin["kind"], twin["of"]): _opened(twin) for twin in photo["twins"]}
    for twin in photo["twins"]:
        image = drawn[twin["kind"], twin["of"]]
        size = output_size(image.size, config.size)
        cropped = crop_to_aspect(decoded.image, image.size)
        is_edit, of_photo = twin["kind"] == "edit", twin["of"] == "photo"
        if of_photo:
            before, before_edit = resize(cropped, size), resize(cropped, image.size)
        else:
            before_edit = drawn[twin["of"], "photo"]
            before = like_source(before_edit, size, cropped.size, jpeg)
        after = with_edit(before, before_edit, image) if is_edit else like_source(image, size, cropped.size, jpeg)
        recompressed = jpeg is not None and not (is_edit and of_photo)  # an edited photo has its compression already
        encoding = encode.describe() | {
            "filter": "lanczos",
            "image_scale": round(size[0] / (cropped if of_photo else image).width, 4),
            "twin_scale": round(size[0] / (cropped if is_edit and of_photo else image).width, 4),
            "twin_first": f"jpeg {jpeg.quality} at {cropped.width}x{cropped.height}" if jpeg and recompressed else None,
            "source_jpeg": describe_jpeg(jpeg),
        }
        # an autoencoder takes no steps and has no guidance, an edit no model at all unless it paints
        is_drawn = twin["kind"] == "caption" or (is_edit and twin["edit"]["operation"] == "inpaint")
        generator = twin["edit"]["operation"] if is_edit and of_photo and not is_drawn else photo["generator"]
        pair_id = hashlib.sha256(f"{photo['id']}/{twin['kind']}/{photo['generator']}/{twin['seed']}".encode())
        yield {
            "pair_id": pair_id.hexdigest()[:16],
            "group": group,
            "image": {"bytes": encode_image(before, encode), "path": None},
            "image_label": "real" if of_photo else "generated",
            "twin": {"bytes": encode_image(after, encode), "path": None},
            "kind": twin["kind"],
            "generator": generator,
            "caption": photo["caption"],
            "prompt": twin["prompt"],
            "seed": twin["seed"],
            "edit": twin["edit"] and twin["edit"] | {"box": scaled_box(twin["edit"]["box"], image.size, size)},
            "source": photo["source"],
            "receipt": {
                "captioner": photo["captioner"],
                "captioner_revision": photo["captioner_revision"],
                "generator_revision": photo["generator_revision"],
                "steps": photo["steps"] if is_drawn else None,
                "guidance": photo["guidance"] if is_drawn else None,
                "scheduler": photo["scheduler"] if is_drawn else None,
                "dtype": photo["dtype"],
                "quantization": photo["quantization"],
                "batch": twin["batch"],
                "encode": json.dumps(encoding),
            },
        }


def _two_images(row: Mapping[str, Any], object_class: str | None) -> list[dict[str, Any]]:
    """The members of a pair as rows of their own, where a prompt and no photo was what the one was made from."""
    drawn = Image.open(io.BytesIO(row["twin"]["bytes"]))
    about = {
        "path_or_id": f"prompt: {row['prompt']} (seed {row['seed']})",
        "width": drawn.width,
        "height": drawn.height,
    }
    shared = {"group": row["group"]}
    return [
        {"image": row["image"], "label": "real", "generator": "", "object_class": object_class, "source": row["source"]}
        | shared,
        {"image": row["twin"], "label": "generated", "generator": row["generator"], "source": about} | shared,
    ]


def _opened(twin: Mapping[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(twin["image"]["bytes"])).convert("RGB")


def with_edit(before: Image.Image, before_edit: Image.Image, edited: Image.Image) -> Image.Image:
    """`before` with what was changed between `before_edit` and `edited`, which may be of another size.

    Only the difference is added, which is zero outside the box: where sizes agree the edit is as it was drawn, and a
    resized one takes nothing with it but its own resizing.
    """
    was, is_now = (np.asarray(resize(image, before.size), dtype=np.int16) for image in (before_edit, edited))
    changed = np.asarray(before, dtype=np.int16) + (is_now - was)
    return Image.fromarray(changed.clip(0, 255).astype(np.uint8))


def scaled_box(box: Sequence[int], size: tuple[int, int], to: tuple[int, int]) -> list[int]:
    """A box of an image of `size` in its copy of size `to`, with the few pixels into which the filter carries it."""
    if size == to:
        return list(box)
    scaled = []
    for start, stop, length, new in ((box[0], box[2], size[0], to[0]), (box[1], box[3], size[1], to[1])):
        reach = 3 * max(1.0, new / length)  # Lanczos reads three pixels to either side, of the coarser grid
        scaled.append(
            (max(0, math.floor(start * new / length - reach)), min(new, math.ceil(stop * new / length + reach)))
        )
    (x0, x1), (y0, y1) = scaled
    return [x0, y0, x1, y1]


def output_size(twin_size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """(width, height) of both members: the twin's own, or its aspect with about `side`^2 pixels."""
    if side is None:
        return twin_size
    scale = side / math.sqrt(twin_size[0] * twin_size[1])
    return max(1, round(twin_size[0] * scale)), max(1, round(twin_size[1] * scale))


def open_dataset(path_or_id: str | Path) -> datasets.DatasetDict:
    """All splits of a pair or image dataset, from a folder or the Hub; `UserError` for anything else."""
    try:
        opened = load_dataset(str(path_or_id))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path_or_id}: cannot be opened as a dataset ({reason})") from error
    _kind_of(opened, path_or_id)
    return opened


def dataset_kind(path_or_id: str | Path) -> Literal["pairs", "images"]:
    """Whether a dataset has a row a (photo, twin) or a row an image; `UserError` where it has neither."""
    return _kind_of(open_dataset(path_or_id), path_or_id)


def load_pairs(path_or_id: str | Path, split: str) -> datasets.Dataset:
    """One split of a pair dataset."""
    opened = open_dataset(path_or_id)
    if _kind_of(opened, path_or_id) != "pairs":
        raise UserError(
            f"{path_or_id}: one row an image, where pairs are needed; make some with data_gen/make_pairs.py"
        )
    if split not in opened:
        raise UserError(f"{path_or_id}: has no split {split} (has {', '.join(opened)})")
    return opened[split]


def _kind_of(opened: datasets.DatasetDict, path_or_id: str | Path) -> Literal["pairs", "images"]:
    columns = set(next(iter(opened.values())).column_names)
    needed: dict[Literal["pairs", "images"], set[str]] = {
        "pairs": {"pair_id", "group", "image", "image_label", "twin", "kind"},
        "images": {"image", "label", "group"},
    }
    for kind, names in needed.items():
        if names <= columns:
            return kind
    raise UserError(
        f"{path_or_id}: neither a pair dataset nor an image dataset: its columns are {', '.join(sorted(columns))}; "
        "make one with data_gen/make_pairs.py"
    )
