"""Open a pair or image dataset, from a folder or the Hub. `generate/pack.py` writes one.

dataset = open_dataset("data/pairs")          # DatasetDict: train, validation, test
rows = load_pairs("data/pairs", "train")      # one row per (photo, twin), columns.PAIR_FEATURES
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import datasets

from vlm_detect.data.sources import load_dataset
from vlm_detect.errors import UserError


def open_dataset(path_or_id: str | Path) -> datasets.DatasetDict:
    """All splits of a pair or image dataset, from a folder or the Hub; `UserError` for anything else."""
    try:
        opened = load_dataset(str(path_or_id))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        here = "" if Path(path_or_id).exists() else "there is no such folder here; "
        raise UserError(f"{path_or_id}: cannot be opened as a dataset ({here}{reason})") from error
    _kind_of(opened, path_or_id)
    return opened


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
