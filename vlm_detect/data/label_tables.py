"""Tables of images and labels: CSV, TSV or JSON Lines.

    rows = read_tables(Path("set/"))            # metadata.csv, labels.csv, train/metadata.jsonl, ...
    rows = read_tables(Path("labels.csv"))

A row has a label and a file (file_name, image, path, ...), relative to the table or as a path of another machine.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from vlm_detect.data.label_reading import LABEL_COLUMNS, LabelReader
from vlm_detect.data.named_files import find_file
from vlm_detect.errors import UserError

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "img", "img_path", "image_name", "path", "name")
_SUFFIXES = {".csv", ".tsv", ".jsonl"}


@dataclass(frozen=True)
class TableRow:
    """One row: the image's path, which may not exist, and all other columns."""

    path: Path
    row: Mapping[str, Any]
    reader: LabelReader


def find_tables(folder: Path) -> list[Path]:
    """The tables in a folder and in its direct subfolders."""
    found = [path for depth in ("*", "*/*") for path in folder.glob(depth) if path.suffix.lower() in _SUFFIXES]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def read_tables(
    place: Path,
    *,
    file_column: str = "",
    label_column: str = "",
    file_format: str = "",
    given: Mapping[str, Any] | None = None,
) -> list[TableRow]:
    """The rows of a table, or of all tables of a folder that list images with labels.

    `file_format` builds a file's path from a row's columns, such as "images/{image_name}.jpg".
    """
    found: list[TableRow] = []
    for table in [place] if place.is_file() else find_tables(place):
        rows = list(_rows(table))
        columns = list(rows[0]) if rows else []
        files = _named(columns, file_column) if file_column else _first(columns, FILE_COLUMNS)
        if missing := {name for _, name, _, _ in Formatter().parse(file_format) if name} - set(columns):
            raise UserError(f"{table}: no column {', '.join(sorted(missing))} (it has {', '.join(columns) or 'none'})")
        labels = _named(columns, label_column) if label_column else _first(columns, LABEL_COLUMNS)
        if not files or not labels:
            if place.is_file():
                what, flag = ("labels", "--label_column") if files else ("files", "--image_column")
                has = ", ".join(columns) or "none"
                raise UserError(f"{table}: no column of {what} (it has {has}): name one with {flag}")
            continue  # an unrelated table
        reader = LabelReader.choose(columns, column=labels, given=given, named=str(table))
        for row in rows:
            name = file_format.format(**row) if file_format else str(row.get(files) or "").strip()
            path = find_file(table.parent, name) if name else None
            found.append(TableRow(path or table.parent / (name or "no file named"), row, reader))
    return found


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == ".jsonl":
                for line in file:
                    row = json.loads(line) if line.strip() else None
                    if isinstance(row, dict):
                        yield row
                return
            yield from csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read as a table ({error})") from error


def _first(columns: list[str], known: tuple[str, ...]) -> str | None:
    return next((name for one in known for name in columns if name.strip().lower() == one), None)


def _named(columns: list[str], column: str) -> str | None:
    return next((name for name in columns if name.lower() == column.lower()), None)
