"""The dataset of a run: found, or made from the bundled photos if none was given, then opened and checked."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from datasets import Dataset, DatasetDict

from vlm_detect.config import file_sha256
from vlm_detect.data.demo_photos import write_demo_photos
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.records import Label
from vlm_detect.train.conversations import is_conversations, read_conversations, split
from vlm_detect.train.options import DEFAULT_DATA

_LABELS = set(get_args(Label))


def dataset_or_demo(data: str, check: Callable[[], object] = lambda: None) -> str:
    """`data` itself; where it is the default and does not exist, pairs made there from the bundled photos.

    `check` is called before any are made: what would end the run without them.
    """
    if data != DEFAULT_DATA or Path(data).exists():
        return data
    check()
    photos = Path(data).with_name("demo_photos")
    print(f"no dataset in {data}: making pairs from the bundled photos, which test the pipeline but teach little")
    write_demo_photos(photos)
    # In a separate process, so that the captioner and the renderer are freed at its end.
    program = [sys.executable, "-m", "vlm_detect.generate.make_pairs"]
    made = subprocess.run([*program, "--images", str(photos), "--out", data], check=False)
    if made.returncode:
        raise UserError(f"making pairs from the bundled photos failed (exit status {made.returncode}, see above)")
    return data


def open_splits(data: str, limit: int | None = None, validation: str | None = None) -> tuple[Dataset, Dataset]:
    """The training split (its first `limit` rows) and the validation split; the test split is never read.

    Of a conversation file a fifth is held out for validation, which may be empty. `validation` names a dataset whose
    validation split is scored instead.

    Raises:
        UserError: for another kind of dataset, a missing split, or a training split without both classes.
    """
    if validation:
        return open_training(data, limit), _split(open_dataset(validation), "validation", validation)
    if is_conversations(data):
        train, held_back = split(_conversations(data))
        if not len(held_back):
            print(
                f"{data}: validation needs real and generated images (metadata.generator): all conversations are used "
                "for training, the last checkpoint is kept, and it is not calibrated (give --validation DATASET to "
                "score another)"
            )
        return _first(train, limit), held_back
    opened = open_dataset(data)
    return _training(opened, data, limit), _split(opened, "validation", data)


def open_training(data: str, limit: int | None = None) -> Dataset:
    """The training split only (its first `limit` rows); for a conversation file all rows."""
    if is_conversations(data):
        return _first(_conversations(data), limit)
    return _training(open_dataset(data), data, limit)


def data_hashes(data: str) -> dict[str, str]:
    """sha256 of every Parquet file of a dataset folder, or of a JSON file, by name; nothing for a Hub id."""
    folder = Path(data)
    if is_conversations(data):
        return {folder.name: file_sha256(folder)}
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*.parquet"))}


def _conversations(data: str) -> Dataset:
    rows, problems = read_conversations(data)
    if problems:
        print(f"{data}: {len(problems)} of {len(rows) + len(problems)} conversations are skipped ({problems[0]})")
    return rows


def _training(opened: DatasetDict, data: str, limit: int | None) -> Dataset:
    train = _first(_split(opened, "train", data), limit)
    check_labels(train, data)
    return train


def _first(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _split(opened: DatasetDict, name: str, data: str) -> Dataset:
    if name not in opened or not len(opened[name]):
        raise UserError(
            f"{data} has no {name} split (it has {', '.join(opened)}): the best checkpoint is chosen on a validation "
            "split, never on test; make both with vlm-detect make-pairs or vlm-detect import-images"
        )
    return opened[name]


def check_labels(rows: Dataset, data: str) -> None:
    """UserError where an image dataset has other labels, or images of one class only."""
    if {"twin", "turns"} & set(rows.column_names):
        return  # a pair has both classes, a conversation has its own answer
    counts = Counter(rows["label"])
    if unknown := sorted(set(map(str, counts)) - _LABELS):
        raise UserError(f"{data}: unknown labels {', '.join(unknown[:5])}; use {', '.join(sorted(_LABELS))}")
    if not counts["real"] or not (counts["generated"] or counts["edited"]):
        found = ", ".join(f"{count} {label}" for label, count in counts.items())
        raise UserError(f"{data}: the training split has only one class ({found}); both real and generated are needed")
