"""Verify a case: every file of it, its signature, and the images that it names.

    vlm-detect verify case_7 --public_key key.pub
    vlm-detect verify case_7 --images photos/             # where the images are, if not where the scan found them

A changed byte anywhere is one line that names the file, and exit status 1. Images that are no longer where the scan
found them are counted as not checked; with `--images` a missing one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_detect.apps.case_files import JSON, PAGE, SIGNATURE, SUMS, checksums
from vlm_detect.apps.signatures import public_from_text, read_public_key, verifies
from vlm_detect.config import file_sha256
from vlm_detect.errors import UserError
from vlm_detect.progress import progress
from vlm_detect.schema import check_schema


@dataclass(frozen=True)
class Verified:
    """`signed_by` is how the signature was checked, empty without one; `not_here` counts images without a file."""

    images: int
    not_here: int
    signed_by: str

    def __str__(self) -> str:
        signed = self.signed_by or "not signed: nothing shows who wrote the case"
        checked = f"{self.images} of {self.images + self.not_here} images are as they were judged"
        gone = "; the others are not where the scan found them (--images FOLDER)" if self.not_here else ""
        return f"the case is as it was written; {checked}{gone}; {signed}"


def verify_case(folder: Path, *, public_key: Path | None = None, images: Path | None = None) -> Verified:
    """Check a case.

    Raises:
        UserError: naming the first file that is missing or has changed, or the signature that does not hold.
    """
    record = _check_files(folder)
    signed_by = _check_signature(folder, record, public_key)
    checked = _check_images(record["images"], images)
    return Verified(checked, len(record["images"]) - checked, signed_by)


def _check_files(folder: Path) -> dict[str, Any]:
    """The content of case.json, once it and the other files match their checksums."""
    try:
        stated = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / SUMS}: {getattr(error, 'strerror', None) or 'has changed'}; no case") from error
    lines = stated.split("\n")
    for name in (PAGE, JSON):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing")
        if f"{file_sha256(folder / name)}  {name}" not in lines:
            raise UserError(f"{folder / name}: has changed since the case was written, or {SUMS} has")
    if stated != checksums(folder):
        raise UserError(f"{folder / SUMS}: has changed since the case was written")
    try:
        record = json.loads((folder / JSON).read_text(encoding="utf-8"))
        check_schema("case", record, folder / JSON)
        page = record["files"][PAGE]
        for image in record["images"]:
            image["path"], image["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / JSON}: not the record of a case ({error})") from error
    if page != file_sha256(folder / PAGE):
        raise UserError(f"{folder / PAGE}: is not the page that {JSON} names: one of them has changed")
    return record


def _check_signature(folder: Path, record: dict[str, Any], public_key: Path | None) -> str:
    stated, path = record.get("signature"), folder / SIGNATURE
    if not path.is_file():
        if stated:
            raise UserError(f"{path}: is missing, and {JSON} says that the case was signed")
        if public_key:
            raise UserError(f"--public_key {public_key}: the case in {folder} was never signed")
        return ""
    try:
        key = read_public_key(public_key) if public_key else public_from_text((stated or {})["public_key"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / JSON}: names no public key for {SIGNATURE}; give --public_key") from error
    if not verifies(key, (folder / JSON).read_bytes(), path.read_bytes()):
        whose = str(public_key) if public_key else "the key that the case names"
        raise UserError(f"{path}: is not the signature of {JSON} by {whose}: one of them has changed")
    if public_key:
        return f"signed by {public_key}"
    return "signed by the key that the case itself names; whose that is, only --public_key shows"


def _check_images(rows: Sequence[dict[str, Any]], folder: Path | None) -> int:
    """How many images were found unchanged."""
    checked = 0
    for row in progress(rows, "verify", unit="img"):
        path = Path(row["path"]) if folder is None else _below(folder, row["path"])
        if not row["sha256"]:  # it could not be read when the case was written
            continue
        if not path.is_file():
            if folder is not None:
                raise UserError(f"{path}: is missing, and the case has a verdict on it")
            continue
        if file_sha256(path) != row["sha256"]:
            raise UserError(f"{path}: has changed since it was judged")
        checked += 1
    return checked


def _below(folder: Path, named: str) -> Path:
    """The file below `folder` at the end of the path that the scan named, however much of it is there."""
    parts = [part for part in Path(named).parts if part not in ("..", Path(named).anchor)]
    tails = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    return next((path for path in tails if path.is_file()), tails[-1] if tails else folder)
