"""Images whose origin is known, from whatever holds them: a dataset, labelled folders, or photos alone.

    images = known_images("data/ours", split="validation")
    images.real, images.generated                   # how many
    for image in images:                            # their bytes, whether each is generated, its group
        ...

A pair or image dataset, folders named real and fake (or a table of labels), and any other rows with a label column are
labelled sets. Everything else, a folder, a glob, a list of paths, a dataset without labels, is taken for photos. Edited
images are left out: they are neither.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from datasets import Dataset, DatasetDict

from vlm_detect.data.dataset_rows import is_dataset
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.data.label_reading import LABEL_COLUMNS
from vlm_detect.data.pairs import kind_of_rows, known_labels, open_splits
from vlm_detect.data.selection import Entry
from vlm_detect.data.sources import SourcePhoto, open_source, report_skipped
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.images.stored import StoredImage, cell_name, undecoded
from vlm_detect.records import Label, label_of_twin

Column = Literal["image", "twin"]
_KEPT_APART = ("test", "unseen")  # splits that measure, and choose nothing
_TABLES = (".csv", ".tsv", ".jsonl")


class KnownImage(NamedTuple):
    """`group` names the source photo; equal files share one where nothing names it."""

    name: str
    data: bytes | ImageRejected
    is_generated: bool
    group: str


@dataclass(frozen=True)
class KnownImages:
    """`named` says which images of `--data` these are; they are read each time that one goes through them."""

    named: str
    real: int
    generated: int
    read: Callable[[], Iterator[KnownImage]]

    def __iter__(self) -> Iterator[KnownImage]:
        return self.read()

    def __len__(self) -> int:
        return self.real + self.generated


def known_images(
    data: str, *, split: str | None = None, default: str | None = None, limit: int | None = None
) -> KnownImages:
    """The images of one split, or of all that are not kept apart for tests; of either class at most half of `limit`.

    `default` is the split of sets that have splits, where `split` names none.

    Raises:
        UserError: where there are none, where labels cannot be read, or for a split that `data` has not.
    """
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in _TABLES:
        return _of_set(data, "folders", split, default, limit)
    if path.is_dir() and not is_dataset(path):
        return _of_folder(data, split, default, limit)
    if path.is_file() or glob.has_magic(data) or ":" in data:
        return _photos(data, split, limit)
    opened = open_splits(data)
    columns = next(iter(opened.values())).column_names
    if (kind := kind_of_rows(columns)) is not None:
        if kind == "images":
            opened = DatasetDict({name: known_labels(rows, data) for name, rows in opened.items()})
        return _of_dataset(opened, data, split, default, limit)
    if any(column.lower() in LABEL_COLUMNS for column in columns):
        return _of_set(data, "hub", split, default, limit)
    return _photos(data, split, limit)


def verdict_cells(rows: Dataset) -> dict[bool, list[tuple[int, Column]]]:
    """Where the real (False) and generated (True) images of a pair or image dataset stand, each photo once.

    `UserError` for a label that is none.
    """
    rows = undecoded(rows)
    cells: dict[bool, list[tuple[int, Column]]] = {False: [], True: []}
    if "twin" not in rows.column_names:
        for i, label in enumerate(rows["label"]):
            if label not in get_args(Label):
                raise UserError(f"row {i} has the label {label}, none of {', '.join(get_args(Label))}")
            if label != "edited":
                cells[label == "generated"].append((i, "image"))
        return cells
    seen: set[str] = set()  # a photo stands in one row for each of its twins
    for i, (label, kind) in enumerate(zip(rows["image_label"], rows["kind"], strict=True)):
        if label_of_twin(kind) == "generated":
            cells[True].append((i, "twin"))
        if label == "real" and (key := StoredImage.from_cell(rows[i]["image"]).key) not in seen:
            seen.add(key)
            cells[False].append((i, "image"))
    return cells


def _of_dataset(
    opened: DatasetDict, data: str, split: str | None, default: str | None, limit: int | None
) -> KnownImages:
    names = _chosen(list(opened), data, split or default)
    parts = [undecoded(opened[name]) for name in names]
    found = [(part, cells) for part, cells in zip(parts, map(verdict_cells, parts), strict=True)]
    by_class = {
        label: [(part, *cell) for part, cells in found for cell in cells[label]][: _half(limit)]
        for label in (False, True)
    }

    def read() -> Iterator[KnownImage]:
        for label, cells in by_class.items():
            for part, row, column in cells:
                cell = part.select_columns([column, "group"])[row]
                name = f"{data}: {cell_name(row, column)}"
                try:
                    data_of = StoredImage.from_cell(cell[column], name).content
                except ImageRejected as rejected:
                    yield KnownImage(name, rejected, label, str(cell["group"]))
                else:
                    yield KnownImage(name, data_of, label, str(cell["group"]))

    return KnownImages(f"{data} ({', '.join(names)})", len(by_class[False]), len(by_class[True]), read)


def _of_folder(data: str, split: str | None, default: str | None, limit: int | None) -> KnownImages:
    """Labelled where a folder or a table says of some image that it is generated; otherwise photos."""
    try:
        images = open_image_set("folders", data)
    except UserError:  # nothing in it names a label
        return _photos(data, split, limit)
    if all(entry.label == "real" for entry in images.entries):
        return _photos(data, split, limit)
    return _of_set(data, "folders", split, default, limit)


def _of_set(data: str, layout: str, split: str | None, default: str | None, limit: int | None) -> KnownImages:
    images = open_image_set(layout, data)
    report_skipped(data, images.skipped)
    splits = {entry.split or "" for entry in images.entries}
    named = [name for name in splits if name]
    names = _chosen(named, data, split or (default if named else None), unnamed="" in splits)

    def wanted(entry: Entry, label: bool) -> bool:
        return (entry.split or "") in names and entry.label == ("generated" if label else "real")

    places = {
        label: [i for i, entry in enumerate(images.entries) if wanted(entry, label)][: _half(limit)]
        for label in (False, True)
    }

    def read() -> Iterator[KnownImage]:
        for label, chosen in places.items():
            for entry, found in chain.from_iterable(images.read(i, i + 1) for i in chosen):
                yield KnownImage(entry.where, found, label, entry.group or _digest(found, entry.where))

    return KnownImages(f"{data} ({images.reading})", len(places[False]), len(places[True]), read)


def _photos(data: str, split: str | None, limit: int | None) -> KnownImages:
    if split is not None:
        raise UserError(f"--split {split}: {data} has no splits; leave it out")
    source = open_source(data, limit)
    report_skipped(data, source.skipped)

    def read() -> Iterator[KnownImage]:
        for photo in source.read(0, len(source)):
            if isinstance(photo, SourcePhoto):
                yield KnownImage(photo.path_or_id, photo.data, False, photo.group or _digest(photo.data, ""))
            else:
                yield KnownImage(photo[0], photo[1], False, photo[0])

    return KnownImages(f"{data} (photos)", len(source), 0, read)


def _chosen(names: Sequence[str], data: str, split: str | None, *, unnamed: bool = False) -> list[str]:
    """The splits that are read; "" stands for images of none."""
    there = ", ".join(names) or "none"
    if split is not None:
        if split not in names:
            raise UserError(f"{data} has no {split} split (it has {there}): name one with --split")
        return [split]
    kept = [name for name in names if name not in _KEPT_APART] + [""] * unnamed
    if not kept:
        raise UserError(
            f"{data} has no split but {there}: a threshold chosen on the test images is not measured by them"
        )
    return kept


def _half(limit: int | None) -> int | None:
    return None if limit is None else max(1, limit // 2)


def _digest(found: bytes | ImageRejected, name: str) -> str:
    return name if isinstance(found, ImageRejected) else hashlib.sha256(found).hexdigest()
