"""Read benchmark items from a file: a JSON list or JSONL as in `docs/design.md`, or the TeoScardov files unchanged.

    benchmark = load_benchmark("vqa_true_false_benchmark.json")      # or a dataset folder: see dataset_items.py
    image = benchmark.image(benchmark.items[0].images[0])            # PIL, RGB

Every item is checked before anything expensive starts. Invalid items (a missing image, a duplicate id, a ground truth
outside the options, a malformed line) are listed together; with `skip_bad` they are skipped and counted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.data.named_files import find_file, json_rows, why_not_found
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.questions.kind import KINDS, prompts_of
from vlm_detect.questions.markup import untagged
from vlm_detect.questions.prompts import answer_pair, mirrored, split_options
from vlm_detect.records import Item

_LISTED_IN_ERROR = 20


def load_benchmark(
    path: str | Path, *, split: str = "test", skip_bad: bool = False, need_images: bool = True
) -> Benchmark:
    """Read a benchmark file, or make the yes/no items of a pair or image dataset folder (its `split`).

    Raises `UserError` for a missing or empty file and, unless `skip_bad`, for any invalid item. `need_images=False`
    skips the check of images: recorded answers are scored without them.
    """
    path = Path(path)
    if path.is_dir():
        from vlm_detect.benchmark.dataset_items import dataset_benchmark

        return dataset_benchmark(path, split=split)
    if not path.is_file():
        raise UserError(f"{path}: no such benchmark file or dataset folder; give a JSON or JSONL file, or a dataset")
    content = path.read_bytes()
    items: list[Item] = []
    answers: dict[str, str] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for where, row in json_rows(path, content):
        try:
            item = _item(row, path.parent, need_images=need_images)
            if item.id in seen:
                raise ValueError(f"id {item.id!r} is used twice")
        except ValueError as problem:
            name = f" ({row['id']})" if isinstance(row, dict) and row.get("id") else ""
            problems.append(f"{where}{name}: {problem}")
            continue
        seen.add(item.id)
        items.append(item)
        if isinstance(row, dict) and isinstance(row.get("answer"), str):
            answers[item.id] = row["answer"]
    if not items and not problems:
        raise UserError(f"{path}: contains no items; a benchmark is a JSON list or JSONL of items")
    if problems and not skip_bad:
        raise UserError(bad_items_message(path, problems, len(items) + len(problems)))
    if not items:
        raise UserError(f"{path}: all {len(problems)} items are bad, such as {problems[0]}")
    return Benchmark(path.name, items, open_image, hashlib.sha256(content).hexdigest(), answers, problems)


def column_of(benchmark: Benchmark, column: str, *, needed: bool = False) -> dict[str, str]:
    """{item id: value} of a metadata column; with `needed`, a column that no item has raises `UserError`."""
    found = {item.id: str(item.metadata[column]) for item in benchmark.items if item.metadata.get(column)}
    if needed and not found:
        known = sorted({name for item in benchmark.items for name in item.metadata})
        raise UserError(f"--by {column}: no item has this column; available: {', '.join(known) or 'none'}")
    return found


def bad_items_message(path: Path, problems: list[str], n: int) -> str:
    """One line that lists the problems; a long list is truncated, and printed in full first."""
    if len(problems) > _LISTED_IN_ERROR:
        print("\n".join(problems))
    listed = "; ".join(problems[:_LISTED_IN_ERROR])
    more = f"; and {len(problems) - _LISTED_IN_ERROR} more, listed above" if len(problems) > _LISTED_IN_ERROR else ""
    return f"{path}: {len(problems)} of {n} items are bad: {listed}{more}. Fix them, or skip them with --skip_bad"


def open_image(path: str | Path) -> Image.Image:
    return decode_image(Path(path)).image


def side_by_side(left: Image.Image, right: Image.Image, *, gap: int = 8) -> Image.Image:
    """Two images side by side, with equal heights and a white gap, for models that take a single image."""
    height = min(left.height, right.height)
    scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in (left, right)]
    canvas = Image.new("RGB", (scaled[0].width + gap + scaled[1].width, height), "white")
    canvas.paste(scaled[0], (0, 0))
    canvas.paste(scaled[1], (scaled[0].width + gap, 0))
    return canvas


def _item(row: Any, folder: Path, *, need_images: bool) -> Item:
    """One checked item; raises ValueError with the problem."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"{json.dumps(row)[:40]} is not an object with id, image, question and ground_truth")
    question, ground_truth = row.get("question"), row.get("ground_truth")
    if row.get("id") in (None, ""):
        raise ValueError("no id")
    if not isinstance(question, str) or not (question := untagged(question)).strip():
        raise ValueError("no question")
    if not isinstance(ground_truth, str) or not ground_truth.strip():
        raise ValueError("no ground_truth")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata is a {type(metadata).__name__}, not an object")
    options = row.get("options") or split_options(question)
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise ValueError("options are not a list of texts")
    if len(options) == 1 or len(options) > 8:
        raise ValueError(f"{len(options)} options; 2 to 8 can be lettered")
    if len(set(options)) < len(options):
        raise ValueError("two options are equal")
    kind: Any = row.get("kind") or (
        "multiple_choice" if options else "true_false" if answer_pair(ground_truth) or mirrored(question) else "open"
    )
    if kind not in KINDS or not KINDS[kind].in_benchmark:
        known = [name for name in KINDS.own if KINDS[name].in_benchmark]
        raise ValueError(f"kind {kind!r} is not one of {', '.join(known)}, and no installed package provides it")
    names = row.get("images") or row.get("image")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("no image")
    if len(names) != KINDS[kind].n_images:
        raise ValueError(f"{len(names)} images for kind {kind}, which needs {KINDS[kind].n_images}")
    paths = [_find(name, folder, need_images) for name in names]
    if need_images:
        hashes = [_checked_sha256(path) for path in paths]
        # Equal files are one photo under several names: their answers are not independent.
        metadata = {**metadata, "group": metadata.get("group") or "|".join(hashes)}
    item = Item(str(row["id"]), kind, tuple(map(str, paths)), question, ground_truth, tuple(options), metadata)
    prompts_of(item)  # raises if the ground truth is not one of the answers
    return item


def _find(name: str, folder: Path, needed: bool) -> Path:
    if (found := find_file(folder, name)) is not None:
        return found
    if needed:
        raise ValueError(f"image {why_not_found(folder, name)}")
    return Path(name)


def _checked_sha256(path: Path) -> str:
    try:
        return decode_image(path).sha256[:16]
    except ImageRejected as error:
        raise ValueError(f"image {path} cannot be used: {error}") from error
