"""Import labelled images as an image dataset (`vlm-detect import-images`): read in shards, then written.

An image keeps its pixels exactly. Usually its compressed data are also kept, without metadata; a file that has to be
rotated, converted to sRGB or composited over white is re-encoded: a JPEG with its own tables, anything else as PNG. So
leaks in a published set are preserved, for `vlm-detect audit` to find.

Near-duplicates share a split; equal files are kept once. Published training images are divided into train and
validation; published test images are the test split, and training images that duplicate one are rejected.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Features, Value

from vlm_detect.columns import EDIT_FEATURES, IMAGE_FEATURES
from vlm_detect.data.image_sets import ImageSet, open_image_set
from vlm_detect.data.selection import Entry, Selection
from vlm_detect.data.sources import report_skipped
from vlm_detect.data.splits import Split, merge_groups, split_groups
from vlm_detect.data.with_photos import WithPhotos
from vlm_detect.errors import UserError
from vlm_detect.generate.card import image_card
from vlm_detect.generate.dataset_files import Packed, SplitWriter, finish_folder, written_whole
from vlm_detect.generate.import_options import ImportConfig
from vlm_detect.generate.masks import edit_of_mask, label_with_edit
from vlm_detect.generate.usable import check_usable, source_facts
from vlm_detect.images.decode import DecodedImage, ImageRejected, decode_image
from vlm_detect.images.strip_metadata import bare_bytes
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, counted, read_plan, read_rejects, read_rows, sum_up, write_shard
from vlm_detect.progress import progress
from vlm_detect.records import Reject

# One row per image, before its split is known.
IMPORT_FEATURES = Features({**IMAGE_FEATURES, "edit": EDIT_FEATURES, "split": Value("string")})


def plan_import(src: str, config: ImportConfig) -> Plan:
    images = _image_set(config.layout, src, config.selection, config.photos)
    report_skipped(src, images.skipped)
    print(f"{src}: {images.reading}")
    labels = {entry.label for entry in images.entries if entry.label is not None}
    if len(labels) < 2:
        remedy = "; --photos SRC adds photos" if labels == {"generated"} else ""
        raise UserError(f"{src}: {len(images.entries)} images, all {', '.join(labels)}; two labels are needed{remedy}")
    return Plan("import", len(images.entries), config.shard_size, images.fingerprint, {"src": src, **asdict(config)})


def import_images(src: str, config: ImportConfig, plan: Plan, folder: Path, launch: Launch | None = None) -> str | None:
    """Run the shards; returns the result of `run_shards`: None when all is done."""
    return run_shards(ImportShard(src, config, plan, folder), plan, folder, launch)


@dataclass(frozen=True)
class ImportShard:
    """Process one shard; called in any process."""

    src: str
    config: ImportConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        rows, rejects = [], []
        images = _image_set(self.config.layout, self.src, self.config.selection, self.config.photos)
        for entry, data in counted(images.read(*self.plan.span(shard))):
            try:
                rows.append(_row(entry, data, self.config))
            except ImageRejected as error:
                rejects.append(Reject(entry.where, "decode", error.reason, error.detail))
        write_shard(self.folder, shard, rows, IMPORT_FEATURES, rejects)


def _row(entry: Entry, data: bytes | ImageRejected, config: ImportConfig) -> dict[str, Any]:
    if entry.label is None:
        raise ImageRejected("no_label", "the set has no label for it")
    if isinstance(data, ImageRejected):
        raise data
    decoded = decode_image(data)
    check_usable(decoded, config.min_side)
    edit = edit_of_mask(entry.mask, decoded.image.size) if entry.mask else None
    return {
        "image": {"bytes": stored_bytes(data, decoded), "path": None},
        "label": label_with_edit(entry.label, edit),
        "generator": entry.generator,
        "object_class": entry.object_class,
        "group": entry.group or decoded.sha256[:16],
        "split": entry.split,
        "edit": edit,
        "source": source_facts(entry.where, decoded, entry.licence or config.licence),
    }


def stored_bytes(data: bytes, decoded: DecodedImage) -> bytes:
    """The file without metadata, or re-encoded if its pixels had to be corrected."""
    if decoded.is_plain and (bare := bare_bytes(data)) is not None:
        return bare
    buffer = io.BytesIO()
    if decoded.jpeg and decoded.jpeg.subsampling >= 0 and len(decoded.jpeg.tables) > 1:
        tables = [list(table) for table in decoded.jpeg.tables]
        decoded.image.save(buffer, "JPEG", qtables=tables, subsampling=decoded.jpeg.subsampling)
    else:
        decoded.image.save(buffer, "PNG")
    return buffer.getvalue()


def pack_images(shards: Path, out: Path, config: ImportConfig, settings: dict[str, Any]) -> Packed:
    """Write the image dataset `out` from the finished import step in `shards`."""
    plan = read_plan(shards)
    rejects = [reject for shard in range(plan.shards) for reject in read_rejects(shards, shard)]
    columns = ["group", "split", "label", "source", "edit"]
    facts = [row for shard in range(plan.shards) for row in read_rows(shards, shard, columns)]
    places = assign_splits(facts, config, rejects)
    if not any(places):
        raise UserError(f"none of the {plan.items} images is usable {sum_up(rejects)}")
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("label", "generator", "licence")}
    with written_whole(out) as partial:
        features = IMAGE_FEATURES
        if any(row["edit"] for row in facts):  # an additional column if the set has masks
            features = Features({**IMAGE_FEATURES, "edit": EDIT_FEATURES})
        writer = SplitWriter(partial / "data", features, config.images_per_file)
        rows = (row for shard in range(plan.shards) for row in read_rows(shards, shard))
        for row, place in progress(zip(rows, places, strict=True), "pack", total=len(places), unit="img"):
            if place is None:
                continue
            split, group = place
            writer.write(split, {name: row[name] for name in features} | {"group": group})
            counts["label"][row["label"]] += 1
            counts["generator"][row["generator"] or "none"] += 1
            counts["licence"][row["source"]["licence"] or "not stated"] += 1
        card = functools.partial(
            image_card,
            labels=counts["label"],
            generators=counts["generator"],
            licences=counts["licence"],
            published=sorted({str(row["split"]) for row in facts if row["split"]}),
        )
        return finish_folder(partial, writer, "images", rejects, settings, card)


def assign_splits(
    facts: Sequence[dict[str, Any]], config: ImportConfig, rejects: list[Reject]
) -> list[tuple[Split, str] | None]:
    """(split, group) of each image, None for rejected ones; the reasons are appended to `rejects`."""
    ranks: dict[Split | None, int] = {"test": 0, "unseen": 1, "validation": 2, "train": 3, None: 4}
    order = sorted(range(len(facts)), key=lambda i: ranks[facts[i]["split"]])  # stable
    # Of equal files the one in the test split is kept: a training image must not be in the test.
    first: dict[str, int] = {}
    for i in order:
        source = facts[i]["source"]
        if (other := first.setdefault(source["sha256"], i)) != i:
            same = facts[other]["source"]["path_or_id"]
            rejects.append(Reject(source["path_or_id"], "pack", "duplicate", f"the same bytes as {same}"))
    kept = list(first.values())
    groups = merge_groups(
        {str(i): facts[i]["source"]["phash"] for i in kept},
        {str(i): facts[i]["group"] for i in kept},
        distance=config.duplicate_bits,
    )
    published: dict[str, Split] = {}
    for i in kept:  # in the order of ranks
        if facts[i]["split"]:
            published.setdefault(groups[str(i)], facts[i]["split"])
    has = set(published.values())
    free = {group for group in groups.values() if published.get(group, "train") == "train"}
    assigned = split_groups(
        free,
        validation=0 if "validation" in has else config.validation,
        test=0 if "test" in has else config.test,
    )
    places: list[tuple[Split, str] | None] = [None] * len(facts)
    for i in kept:
        group, own = groups[str(i)], facts[i]["split"]
        split = assigned.get(group) or published[group]
        if own and ranks[own] > ranks[published[group]]:
            detail = f"a near-duplicate of it is published in the {split} split"
            rejects.append(Reject(facts[i]["source"]["path_or_id"], "pack", "near_duplicate", detail))
        else:
            places[i] = split, group
    return places


@functools.cache  # a worker processes many shards
def _image_set(layout: str, src: str, selection: Selection, photos: str) -> ImageSet:
    if not photos:
        return open_image_set(layout, src, selection)
    generated = replace(selection, limit=selection.limit and selection.limit - selection.limit // 2)
    return WithPhotos(open_image_set(layout, src, generated), photos, selection.limit)
