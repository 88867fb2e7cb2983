"""The last step of making a pair dataset (`vlm-detect pack`): write photos and twins into a dataset folder.

The folder is written atomically, under a temporary name. `pair_rows.py` makes the rows,
`vlm_detect.data.splits` assigns photos to splits, `card.py` writes the dataset card.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
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


def pack_pairs(renders: Path, out: Path, config: PackConfig, encode: EncodeConfig, settings: dict[str, Any]) -> Packed:
    """Write the dataset `out` from the finished render step in `renders`.

    `settings` are those of all steps, for `run.json`: a rerun compares them to see that nothing is left to do.
    """
    plan = read_plan(renders)
    rejects = [reject for shard in range(plan.shards) for reject in read_rejects(renders, shard)]
    # images rendered from prompts are not twins: then a row is an image
    is_paired = not any(
        row["captioner"] == FROM_PROMPTS
        for shard in range(plan.shards)
        for row in read_rows(renders, shard, ["captioner"])
    )
    rendered_hashes = {} if is_paired else _rendered_hashes(renders, plan.shards)
    splits = _split_photos(renders, plan.shards, rendered_hashes, config, rejects)
    if not splits:
        why = sum_up(rejects) if rejects else "(nothing was rendered)"
        raise UserError(f"none of the {plan.items} photos gave a pair {why}")
    with written_whole(out) as partial:
        return _write(
            partial,
            renders,
            plan.shards,
            splits=splits,
            rejects=rejects,
            config=config,
            encode=encode,
            settings=settings,
            is_paired=is_paired,
            endpoint=plan.settings.get("generator_endpoint"),
        )


def _write(
    partial: Path,
    renders: Path,
    shards: int,
    *,
    splits: dict[str, tuple[Split, str] | None],
    rejects: list[Reject],
    config: PackConfig,
    encode: EncodeConfig,
    settings: dict[str, Any],
    is_paired: bool,
    endpoint: str | None,
) -> Packed:
    writer = SplitWriter(partial / "data", PAIR_FEATURES if is_paired else PROMPTED_FEATURES, config.pairs_per_file)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "licence", "captioner", "generator")}
    bar = progress(desc="pack", unit="pair")
    for shard in range(shards):
        for photo in read_rows(renders, shard):
            if (place := splits.get(photo["id"])) is None:
                continue
            split, group = place
            # otherwise the second of two equal files would be written as well
            splits[photo["id"]] = None
            for row in pair_rows(photo, group, size=config.size, encode=encode):
                for written in [row] if is_paired else prompted_rows(row, photo["object_class"]):
                    writer.write(split, written)
                counts["kind"][row["kind"]] += 1
                counts["licence"][row["source"]["licence"] or "not stated"] += 1
                for maker in ("captioner", "generator"):
                    counts[maker].update([photo[maker]] if photo[maker] else [])
                bar.update()
    bar.close()
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


def _rendered_hashes(renders: Path, shards: int) -> dict[str, str]:
    """photo's id -> the perceptual hash of its twin."""
    rows = (row for shard in range(shards) for row in read_rows(renders, shard, ["id", "twins"]))
    return {row["id"]: perceptual_hash(twin_image(row["twins"][0])) for row in rows}


def _split_photos(
    renders: Path, shards: int, rendered_hashes: Mapping[str, str], config: PackConfig, rejects: list[Reject]
) -> dict[str, tuple[Split, str] | None]:
    """id -> (split, group) of each photo to write; duplicates are appended to `rejects`.

    Photos whose rendered images (`rendered_hashes`: their hashes) are near-duplicates get one group.
    """
    groups: dict[str, str] = {}
    phashes: dict[str, str] = {}
    names: dict[str, str] = {}
    generators: dict[str, str] = {}
    links: list[tuple[str, str]] = []  # pairs of groups to merge
    for shard in range(shards):
        for row in read_rows(renders, shard, ["id", "group", "source", "generator", "twins.list.element.edit"]):
            name = row["source"]["path_or_id"]
            if row["id"] in groups:
                rejects.append(Reject(name, "pack", "duplicate", f"the same bytes as {names[row['id']]}"))
                again = f"{row['id']} in {row['group']}"
                groups[again] = row["group"]
                links.append((again, row["id"]))
                continue
            groups[row["id"]], phashes[row["id"]], names[row["id"]] = row["group"], row["source"]["phash"], name
            generators[row["id"]] = row["generator"]
            links += [
                (row["id"], twin["edit"]["donor"]) for twin in row["twins"] if twin["edit"] and twin["edit"]["donor"]
            ]
    repeats = find_duplicates(phashes, groups, distance=config.duplicate_bits)
    for photo, first in repeats.items():
        rejects.append(Reject(names[photo], "pack", "near_duplicate", f"looks like {names[first]}"))
        names.pop(photo)
    # The group of a rejected photo, and what was spliced from it, belong to the photo that it duplicates.
    links = [*repeats.items(), *((photo, other) for photo, other in links if other in groups)]
    merged = merge_groups(rendered_hashes, join_groups(groups, links), distance=config.duplicate_bits)
    kept = {photo: merged[photo] for photo in groups if photo in names}
    held_out = {kept[photo] for photo, name in names.items() if is_held_out(config.hold_out, generators[photo], name)}
    if config.hold_out and not held_out:
        raise UserError(f"--hold_out {' '.join(config.hold_out)}: no pair matches")
    if kept and held_out == set(kept.values()):
        raise UserError(f"--hold_out {' '.join(config.hold_out)}: that is every photo; none would remain for training")
    splits = split_groups(set(kept.values()) - held_out, validation=config.validation, test=config.test)
    return {photo: ("unseen" if group in held_out else splits[group], group) for photo, group in kept.items()}
