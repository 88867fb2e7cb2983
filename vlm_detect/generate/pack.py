"""The last step of making a pair dataset (`vlm-detect pack`): write photos and twins into a dataset folder.

The folder is written atomically, under a temporary name. `pair_rows.py` makes the rows,
`vlm_detect.data.splits` assigns photos to splits, `card.py` writes the dataset card.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_detect.columns import PAIR_FEATURES, PROMPTED_FEATURES
from vlm_detect.data.selection import is_held_out
from vlm_detect.data.splits import Split, find_duplicates, join_groups, merge_groups, split_groups
from vlm_detect.errors import UserError
from vlm_detect.generate.card import pair_card
from vlm_detect.generate.dataset_files import Packed, SplitWriter, finish_folder, written_whole
from vlm_detect.generate.options import PackConfig
from vlm_detect.generate.pair_rows import pair_rows, prompted_rows, twin_image
from vlm_detect.generate.usable import perceptual_hash
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.shards import read_plan, read_rejects, read_rows, sum_up
from vlm_detect.progress import progress
from vlm_detect.records import FROM_PROMPTS, Reject

_Shards = Sequence[tuple[Path, int]]  # (a render step's folder, a shard of it)
_Splits = Mapping[tuple[str, str], tuple[Split, str]]  # (a photo's id, its path or id) -> (split, group)


def pack_pairs(
    renders: Sequence[Path], out: Path, config: PackConfig, encode: EncodeConfig, settings: dict[str, Any]
) -> Packed:
    """Write the dataset `out` from the finished render steps in `renders`, one for each generator.

    A photo that several of them rendered has the twins of all. `settings` are those of all steps, for `run.json`: a
    rerun compares them to see that nothing is left to do.
    """
    plans = {folder: read_plan(folder) for folder in renders}
    shards = [(folder, shard) for folder, plan in plans.items() for shard in range(plan.shards)]
    endpoints = [url for plan in plans.values() if (url := plan.settings.get("generator_endpoint"))]
    # the captions' rejects are in every render step
    rejects = list(dict.fromkeys(reject for place in shards for reject in read_rejects(*place)))
    # images rendered from prompts are not twins: then a row is an image
    is_paired = not any(row["captioner"] == FROM_PROMPTS for _, row in _rows(shards, ["captioner"]))
    rendered_hashes = {} if is_paired else _rendered_hashes(shards)
    splits = _split_photos(shards, rendered_hashes, config, rejects)
    if not splits:
        why = sum_up(rejects) if rejects else "(nothing was rendered)"
        raise UserError(f"none of the {plans[renders[0]].items} photos gave a pair {why}")
    with written_whole(out) as partial:
        return _write(
            partial,
            shards,
            splits=splits,
            rejects=rejects,
            config=config,
            encode=encode,
            settings=settings,
            is_paired=is_paired,
            endpoint=" and ".join(dict.fromkeys(endpoints)) or None,
        )


def _rows(shards: _Shards, columns: Sequence[str] | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows of all shards, each with its render step."""
    for folder, shard in shards:
        for row in read_rows(folder, shard, columns):
            yield folder, row


def _write(
    partial: Path,
    shards: _Shards,
    *,
    splits: _Splits,
    rejects: list[Reject],
    config: PackConfig,
    encode: EncodeConfig,
    settings: dict[str, Any],
    is_paired: bool,
    endpoint: str | None,
) -> Packed:
    writer = SplitWriter(partial / "data", PAIR_FEATURES if is_paired else PROMPTED_FEATURES, config.pairs_per_file)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "licence", "captioner", "generator")}
    written_photos: set[tuple[Path, str]] = set()  # the second of two equal files is not written
    with progress(desc="pack", unit="pair") as bar:
        for folder, photo in _rows(shards):
            place = splits.get((photo["id"], photo["source"]["path_or_id"]))
            if place is None or (folder, photo["id"]) in written_photos:
                continue
            split, group = place
            written_photos.add((folder, photo["id"]))
            for row in pair_rows(photo, group, size=config.size, encode=encode):
                for written in [row] if is_paired else prompted_rows(row, photo["object_class"]):
                    writer.write(split, written)
                counts["kind"][row["kind"]] += 1
                counts["licence"][row["source"]["licence"] or "not stated"] += 1
                for maker in ("captioner", "generator"):
                    counts[maker].update([photo[maker]] if photo[maker] else [])
                bar.update()
    card = functools.partial(
        pair_card,
        kinds=counts["kind"],
        licences=counts["licence"],
        captioners=sorted(counts["captioner"]),
        generators=sorted(counts["generator"]),
        encoder=json.dumps(encode.describe()),
        endpoint=endpoint,
    )
    return finish_folder(partial, writer, "pairs" if is_paired else "images", rejects, settings, card)


def _rendered_hashes(shards: _Shards) -> dict[str, str]:
    """photo's id -> the perceptual hash of its twin.

    Raises:
        UserError: for a photo in several render steps: its row, which is an image, would be written several times.
    """
    hashes: dict[str, str] = {}
    first: dict[str, Path] = {}
    for folder, row in _rows(shards, ["id", "twins"]):
        if first.setdefault(row["id"], folder) != folder:
            raise UserError(
                f"{folder} and {first[row['id']]} rendered the same prompts, which makes no pairs; "
                "render each with its own --share K/N"
            )
        hashes[row["id"]] = perceptual_hash(twin_image(row["twins"][0]))
    return hashes


def _split_photos(
    shards: _Shards, rendered_hashes: Mapping[str, str], config: PackConfig, rejects: list[Reject]
) -> _Splits:
    """Of each photo to write; duplicates are appended to `rejects`.

    Photos whose rendered images (`rendered_hashes`: their hashes) are near-duplicates get one group.
    """
    groups: dict[str, str] = {}
    phashes: dict[str, str] = {}
    names: dict[str, str] = {}
    generators: dict[str, set[str]] = {}
    seen: set[tuple[Path, str]] = set()
    duplicates: dict[Reject, None] = {}  # each once, though several generators had it
    links: list[tuple[str, str]] = []  # pairs of groups to merge
    for folder, row in _rows(shards, ["id", "group", "source", "generator", "twins.list.element.edit"]):
        photo, name = row["id"], row["source"]["path_or_id"]
        if (folder, photo) in seen or names.get(photo, name) != name:
            duplicates[Reject(name, "pack", "duplicate", f"the same bytes as {names[photo]}")] = None
            again = f"{photo} in {row['group']}"
            groups[again] = row["group"]
            links.append((again, photo))
            continue
        seen.add((folder, photo))
        groups[photo], phashes[photo], names[photo] = row["group"], row["source"]["phash"], name
        generators.setdefault(photo, set()).add(row["generator"])
        links += [(photo, twin["edit"]["donor"]) for twin in row["twins"] if twin["edit"] and twin["edit"]["donor"]]
    rejects += duplicates
    repeats = find_duplicates(phashes, groups, distance=config.duplicate_bits)
    for photo, first in repeats.items():
        rejects.append(Reject(names[photo], "pack", "near_duplicate", f"looks like {names[first]}"))
        names.pop(photo)
    # The group of a rejected photo, and what was spliced from it, belong to the photo that it duplicates.
    links = [*repeats.items(), *((photo, other) for photo, other in links if other in groups)]
    merged = merge_groups(rendered_hashes, join_groups(groups, links), distance=config.duplicate_bits)
    kept = {photo: merged[photo] for photo in groups if photo in names}
    held_out = {
        kept[photo]
        for photo, name in names.items()
        if any(is_held_out(config.hold_out, generator, name) for generator in generators[photo])
    }
    if config.hold_out and not held_out:
        raise UserError(f"--hold_out {' '.join(config.hold_out)}: no pair matches")
    if kept and held_out == set(kept.values()):
        raise UserError(
            f"--hold_out {' '.join(config.hold_out)}: that is every photo; none would remain for training. To hold out "
            "a generator, give each generator a share of the photos (--generators, or render --share K/N)"
        )
    splits = split_groups(set(kept.values()) - held_out, validation=config.validation, test=config.test)
    return {
        (photo, names[photo]): ("unseen" if group in held_out else splits[group], group)
        for photo, group in kept.items()
    }
