"""Open a pair or image dataset, from a folder or the Hub. `generate/pack.py` writes one.

dataset = open_dataset("data/pairs")          # DatasetDict: train, validation, test
rows = load_pairs("data/pairs", "train")      # one row per (photo, twin), columns.PAIR_FEATURES
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import datasets

from vlm_detect.data.dataset_rows import load_dataset
from vlm_detect.errors import UserError, first_line
from vlm_detect.records import label_named


def open_dataset(path_or_id: str | Path) -> datasets.DatasetDict:
    """All splits of a pair or image dataset, from a folder or the Hub; raises `UserError` for anything else."""
    opened = open_splits(path_or_id)
    if _kind_of(opened, path_or_id) == "images":
        opened = datasets.DatasetDict({name: known_labels(rows, path_or_id) for name, rows in opened.items()})
    return opened


def open_splits(path_or_id: str | Path) -> datasets.DatasetDict:
    """All splits of any dataset, as they are."""
    try:
        return load_dataset(str(path_or_id))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error)
        here = "" if Path(path_or_id).exists() else "there is no such folder; "
        raise UserError(f"{path_or_id}: cannot be opened as a dataset ({here}{reason})") from error


def known_labels(rows: datasets.Dataset, named: str | Path) -> datasets.Dataset:
    """Normalize the labels of an image dataset to real, generated and edited.

    Rows without a label are dropped, with a message. Unknown values are kept, for `check_labels`.
    """
    names = getattr(rows.features["label"], "names", None)
    given = rows.unique("label")
    words = {value: names[value] if names and value is not None and value >= 0 else value for value in given}
    meant = {value: (label_named(word) if isinstance(word, str) else None) or word for value, word in words.items()}
    if all(value == label for value, label in meant.items()) and None not in given:
        return rows
    labels = list(rows["label"])
    kept = [row for row, label in enumerate(labels) if label is not None and not (names and label < 0)]
    if len(kept) < len(labels):
        print(f"{named}: {len(labels) - len(kept)} of {len(labels)} rows are skipped: they have no label")
    found = [str(meant[labels[row]]) for row in kept]
    return rows.select(kept).remove_columns("label").add_column("label", found)


def load_pairs(path_or_id: str | Path, split: str) -> datasets.Dataset:
    """One split of a pair dataset."""
    opened = open_dataset(path_or_id)
    if _kind_of(opened, path_or_id) != "pairs":
        raise UserError(f"{path_or_id}: an image dataset, where pairs are needed; make some with vlm-detect make-pairs")
    if split not in opened:
        raise UserError(f"{path_or_id}: has no split {split} (has {', '.join(opened)})")
    return opened[split]


def kind_of_rows(columns: Collection[str]) -> Literal["pairs", "images"] | None:
    """What a dataset with these columns is; None for neither."""
    needed: dict[Literal["pairs", "images"], set[str]] = {
        "pairs": {"pair_id", "group", "image", "image_label", "twin", "kind"},
        "images": {"image", "label", "group"},
    }
    return next((kind for kind, names in needed.items() if names <= set(columns)), None)


def _kind_of(opened: datasets.DatasetDict, path_or_id: str | Path) -> Literal["pairs", "images"]:
    columns = next(iter(opened.values())).column_names
    if (kind := kind_of_rows(columns)) is not None:
        return kind
    raise UserError(
        f"{path_or_id}: neither a pair dataset nor an image dataset: its columns are {', '.join(sorted(columns))}; "
        "make one with vlm-detect make-pairs"
    )
