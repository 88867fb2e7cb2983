"""Wrong verdicts, collected in a folder that `vlm-detect adapt` reads: FOLDER/real and FOLDER/fake.

    vlm-detect collect-errors marks.csv --out errors/                 # saved from the page of a report or a case
    vlm-detect collect-errors --real a.jpg b.jpg --generated c.png --out errors/
    vlm-detect adapt RUN errors/ --out RUN2                           # from 50 images on

Images are copied under their checksum, so that one that is reported twice is there once, and no file name gives a label
away. Paths in a file of marks are those of the scan: run this where the scan ran.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected, open_bounded, read_bounded
from vlm_detect.printable import from_cell
from vlm_detect.progress import progress

FOLDERS = {"real": "real", "generated": "fake"}
_COLUMNS = {"path", "label", "sha256"}


class Mark(NamedTuple):
    """What an image is, by a person; `sha256` of the file that was judged, or empty."""

    path: Path
    label: str
    sha256: str = ""


def collect_errors(marks: Sequence[Mark], out: Path) -> dict[str, int]:
    """Copy the images of `marks` below `out`; returns how many images each folder has then.

    Raises:
        UserError: before anything is copied, where an image cannot be read, has changed since it was judged, or is
            marked as both.
    """
    copies: dict[str, tuple[str, Path, bytes]] = {}
    for mark in progress(marks, "check the marked images", unit="img"):
        data = _content(mark)
        digest = hashlib.sha256(data).hexdigest()
        before = copies.get(digest)
        if before and before[0] != mark.label:
            raise UserError(f"{mark.path}: is marked as {mark.label} and, as {before[1]}, as {before[0]}; remove one")
        other = next(name for label, name in FOLDERS.items() if label != mark.label)
        if found := next(iter((out / other).glob(f"{digest}.*")), None):
            raise UserError(f"{mark.path}: is marked as {mark.label}, and {found} says otherwise; remove one of them")
        copies[digest] = (mark.label, mark.path, data)
    for digest, (label, path, data) in progress(copies.items(), "copy", unit="img"):
        _copy(data, out / FOLDERS[label] / f"{digest}{path.suffix.lower()}")
    return {label: len(list((out / name).glob("[!.]*"))) for label, name in FOLDERS.items()}


def read_marks(file: Path) -> list[Mark]:
    """The marks of a CSV with the columns path, label and sha256, as a page saves it."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: no file of marks ({getattr(error, 'strerror', None) or error})") from error
    marks = []
    for number, row in enumerate(rows, start=2):
        if not row.keys() >= _COLUMNS or row["label"] not in FOLDERS:
            raise UserError(
                f"{file}: line {number} has no path, label ({' or '.join(FOLDERS)}) and sha256; save it from the page"
            )
        marks.append(Mark(Path(from_cell(row["path"])), row["label"], row["sha256"] or ""))
    if not marks:
        raise UserError(f"{file}: has no marks")
    return marks


def _copy(data: bytes, to: Path) -> None:
    """Write a file in one step; an interrupted copy is no image for `adapt`."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_name(f".{to.name}.partial")
        partial.write_bytes(data)
        partial.replace(to)
    except OSError as error:
        raise UserError(f"--out {to.parent.parent}: {error.strerror}") from error


def _content(mark: Mark) -> bytes:
    if not mark.path.is_file():
        raise UserError(f"{mark.path}: no such file; run this where the scan ran")
    try:
        data = read_bounded(mark.path)
        with open_bounded(data):
            pass
    except ImageRejected as error:
        raise UserError(f"{mark.path}: {error}") from error
    if mark.sha256 and hashlib.sha256(data).hexdigest() != mark.sha256:
        raise UserError(f"{mark.path}: is not the image that was judged: it has changed since")
    return data
