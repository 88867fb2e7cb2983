"""Iterate over all images of a pair or image dataset in a fixed order: by split, by row, a row's image before its twin.

    members = open_members("data/pairs")
    for number, split, row in members.numbered(0, 1000):
        for member in members.of_row(number, split, row): ...       # .column, .label, .group, .image, ...

Rows are numbered over all splits, so that work can be sharded.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset, Features

from vlm_detect.config import file_sha256
from vlm_detect.data.pairs import open_dataset
from vlm_detect.data.splits import SPLITS
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.records import Label, label_named, label_of_twin

Column = Literal["image", "twin"]


@dataclass(frozen=True)
class Member:
    """One image: its `row` number over all splits, and its columns."""

    row: int
    column: Column
    id: str
    names: tuple[str, ...]  # the row's identifiers: ids, the image's origin, that file's SHA-256
    split: str
    label: Label
    group: str
    cell: Mapping[str, Any] | None
    edit: Mapping[str, Any] | None = None

    @cached_property
    def image(self) -> StoredImage:
        """Raises UserError if the cell names an unreadable file."""
        return StoredImage.from_cell(self.cell, self.id)


@dataclass(frozen=True)
class Members:
    """A dataset's undecoded rows, by split in the order of `SPLITS`.

    `features` are those of the opened dataset; `fingerprint` changes with its content.
    """

    splits: Mapping[str, Dataset]
    features: Features
    fingerprint: str

    @property
    def rows(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def columns(self) -> tuple[Column, ...]:
        return ("image", "twin") if "twin" in self.features else ("image",)

    def numbered(self, start: int, stop: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(number, split, row) of the rows from `start` to `stop` (exclusive); images as {bytes, path}."""
        before = 0
        for split, rows in self.splits.items():
            first, last = max(start - before, 0), min(stop - before, len(rows))
            if first < last:
                for i, row in enumerate(rows.select(range(first, last)), before + first):
                    yield i, split, row
            before += len(rows)

    def of_row(self, number: int, split: str, row: Mapping[str, Any]) -> list[Member]:
        """The images of a row from `numbered`."""
        return [self._member(number, split, row, column) for column in self.columns]

    def _member(self, number: int, split: str, row: Mapping[str, Any], column: Column) -> Member:
        if column == "twin":
            label: Label | None = label_of_twin(row["kind"])
        else:
            label = label_named(str(row["image_label" if "twin" in self.columns else "label"]))
        if label is None:
            raise UserError(f"row {number} of {split}: its label is not one of {', '.join(get_args(Label))}")
        names = names_of(row)
        name = names[0] if names else f"{split} {number}"
        return Member(
            row=number,
            column=column,
            id=f"{name} {column}" if len(self.columns) > 1 else name,
            names=names,
            split=split,
            label=label,
            group=str(row["group"]),
            cell=row[column],
            edit=row.get("edit") if column == self.columns[-1] else None,
        )


def names_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row's identifiers, shortest first, including the SHA-256 of its source file."""
    source = row.get("source")
    facts = source if isinstance(source, Mapping) else {"path_or_id": source}
    found = (row.get("pair_id"), row.get("id"), facts.get("path_or_id"), facts.get("sha256"))
    return tuple(str(name) for name in found if name)


@functools.lru_cache(maxsize=2)
def open_members(dataset: str) -> Members:
    """Open a folder or a Hub dataset; cached per process, which may handle many shards of it."""
    opened = open_dataset(dataset)
    order = [*(split for split in SPLITS if split in opened), *sorted(set(opened) - set(SPLITS))]
    splits = {split: undecoded(opened[split]) for split in order}
    digest = hashlib.sha256()
    for path in sorted(Path(dataset).rglob("*.parquet")):
        if path.name != "rejects.parquet":
            digest.update(file_sha256(path).encode())
    for split, rows in splits.items():  # for a Hub dataset everything known without its files
        digest.update(f"{split} {rows['group'][:]}".encode())
    return Members(splits, opened[order[0]].features, digest.hexdigest())
