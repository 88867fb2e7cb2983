"""Labelled rows of `datasets`: each row's index and label are listed, its image is read on demand.

images = hub_rows("owner/set:config:split", Selection())
images.reading                                     # 'label: 0 = real (12), 1 = generated (12)'
for entry, data in images.read(0, 10): ...
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_detect.data.dataset_rows import DatasetRows, open_all_splits
from vlm_detect.data.label_reading import GENERATOR_COLUMNS, LabelReader
from vlm_detect.data.selection import Entry, Selection, select
from vlm_detect.data.sources import text_digest
from vlm_detect.data.splits import SPLIT_WORDS, Split
from vlm_detect.data.streamed_parquet import open_streamed_splits
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.records import Label


class RowSet:
    """Rows of a dataset with a label column; a part is a split or a file."""

    def __init__(self, parts: Sequence[DatasetRows], entries: Sequence[Entry], named: str, reading: str = "") -> None:
        if not entries:
            raise UserError(f"{named}: this dataset has no rows")
        self.entries, self.skipped = entries, Counter[str]()
        self.reading = reading or f"rows: {read_as(entries)}"
        self.fingerprint = fingerprint(entries)
        self._parts = parts

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        entries = self.entries[start:stop]
        found: dict[tuple[int, int], tuple[bytes | ImageRejected, bytes | None]] = {}
        for part, rows in enumerate(self._parts):
            wanted = sorted(entry.place[1] for entry in entries if entry.place[0] == part)
            for index, row in rows.read(wanted):
                found[part, index] = rows.image_of(row), rows.mask_of(row)
        for entry in entries:
            data, mask = found[entry.place]
            yield replace(entry, mask=mask), data


@dataclass(frozen=True)
class RowLayout:
    """What the columns of a dataset do not tell."""

    label: Label | None = None  # of every row; None: that of the label column
    generator: str = ""  # column of the generator, or "split": the split's name; empty: detected
    splits: Mapping[str, Split] = field(default_factory=dict)  # by the name of a split, or of the dataset


_DETECTED = RowLayout()
_CLASS_COLUMNS = ("object_class", "class_name", "category")
_LICENCE_COLUMNS = ("licence", "license")
_FACTS = ("group", *_CLASS_COLUMNS, *_LICENCE_COLUMNS)


def hub_rows(spec: str, selection: Selection, layout: RowLayout = _DETECTED) -> RowSet:
    """Every split of a Hub dataset or of a local one, or the one named by `id:config:split`."""
    splits = _open_splits(spec, selection)
    entries: list[Entry] = []
    readings = []
    known = layout.splits.get(Path(spec.split(":")[0]).name)
    for part, (name, rows) in enumerate(splits.items()):
        label_of = _label_reader(rows, spec, selection, layout)
        generator_columns = [layout.generator] if layout.generator else GENERATOR_COLUMNS
        published = layout.splits.get(name) or known or (SPLIT_WORDS.get(word_of(name)) if len(splits) > 1 else None)
        wanted = {label_of.column.partition(".")[0], label_of.column, *generator_columns, *_FACTS}
        taken: Counter[str] = Counter()
        for index, facts in enumerate(rows.facts(wanted)):
            label = label_of(facts)
            taken[str(label)] += 1
            if selection.limit and rows.in_order_only and (label is None or taken[label] > selection.limit):
                if min(taken["real"], taken["generated"]) > selection.limit:
                    break  # no more of a streamed set has to be downloaded
                continue
            entry = Entry(
                where=f"{spec.split(':')[0]}:{name}#{index}",
                label=label,
                generator=text_of({**facts, "split": name}, *generator_columns) if label != "real" else "",
                object_class=text_of(facts, *_CLASS_COLUMNS),
                group=text_of(facts, "group") or None,
                split=published,  # None for a single split, often named train by default: it is divided here
                licence=text_of(facts, *_LICENCE_COLUMNS) or None,
                place=(part, index),
            )
            entries.append(entry)
        readings.append(f"{name}: {label_of.describe()}" if len(splits) > 1 else label_of.describe())
    parts = list(splits.values())
    if selection.limit is None or not any(rows.in_order_only for rows in parts):
        entries = _clustered(entries, parts)
    return RowSet(parts, select(entries, selection), spec, "; ".join(readings))


def _open_splits(spec: str, selection: Selection) -> Mapping[str, DatasetRows]:
    """With a limit, a Hub dataset stays there: of parquet files any rows are read, of others the first."""
    columns = {"column": selection.image_column, "mask_column": selection.mask_column}
    if selection.limit is not None and (streamed := open_streamed_splits(spec, **columns)) is not None:
        return streamed
    return open_all_splits(spec, streaming=selection.limit is not None, **columns)


def _clustered(entries: Sequence[Entry], parts: Sequence[DatasetRows]) -> list[Entry]:
    """By hashes, so that no range has a single class; rows that are read together stay together."""

    def key(entry: Entry) -> tuple[str, int]:
        part, index = entry.place
        return text_digest([f"{entry.where.rpartition('#')[0]}#{parts[part].cluster(index)}"]), index

    return sorted(entries, key=key)


def _label_reader(rows: DatasetRows, spec: str, selection: Selection, layout: RowLayout) -> LabelReader:
    if layout.label is not None:
        return LabelReader("every row", named=spec, always=layout.label)
    names = rows.class_names()
    given = dict(selection.labels)
    return LabelReader.choose(rows.columns, column=selection.label_column, names=names, given=given, named=spec)


def read_as(entries: Iterable[Entry]) -> str:
    """Such as "12 real, 12 generated"."""
    counts = Counter(entry.label or "without a label" for entry in entries)
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())


def text_of(row: Mapping[str, Any], *columns: str) -> str:
    """The first of these columns that is not empty."""
    return next((str(row[name]) for name in columns if row.get(name) not in (None, "")), "")


def word_of(name: str) -> str:
    """A name in lower case with "_" between words."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def fingerprint(entries: Iterable[Entry]) -> str:
    return text_digest(f"{entry.where}|{entry.label}|{entry.split}" for entry in entries)
