"""Read JSON lists from other machines or programs: their rows, and the files that they name.

for where, row in json_rows(Path("talks.jsonl")): ...       # a JSON list, or one object per line
find_file(Path("data"), "C:\\\\sets\\\\images\\\\3.jpg")            # data/images/3.jpg, else data/3.jpg
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_detect.errors import ALLOW_LOCAL_PATHS, UserError
from vlm_detect.images.local_files import is_within

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def json_rows(path: Path, content: bytes | None = None) -> Iterator[tuple[str, Any]]:
    """(location, row) of a file; a malformed line gives a ValueError instead of the row.

    `content` are the file's bytes, if already read. Text is UTF-8, or UTF-16 with its byte order mark.
    """
    if content is None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            at, reason = (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, "too deep")
            raise UserError(f"{path}: invalid JSON at line {at}: {reason}; fix it there") from error
        yield from ((f"item {i + 1}", row) for i, row in enumerate(rows))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would split at U+2028 within a text
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            yield f"line {number}", ValueError(f"not JSON ({error.msg} at column {error.colno})")
        except RecursionError:
            yield f"line {number}", ValueError("not JSON (too deep)")


def find_file(folder: Path, name: str) -> Path | None:
    """Find the file `name` relative to `folder`; for a path of another machine, by its longest existing suffix.

    A file outside of the folder is found only with `--allow_local_paths`, because the list may be untrusted.
    """
    if "\0" in name:
        return None
    named = _seen_from(folder, name)
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    ends = (folder.joinpath(*parts[start:]) for start in range(len(parts)) if ".." not in parts[start:])
    return next((path for path in (named, *ends) if path.is_file() and is_within(path, folder)), None)


def why_not_found(folder: Path, name: str) -> str:
    """The error message for a name that `find_file` does not find."""
    if "\0" not in name and _seen_from(folder, name).is_file():
        return f"{name} is outside of {folder}: move it there, or give {ALLOW_LOCAL_PATHS}"
    return f"{name} is missing (searched there, and by the end of its path in {folder})"


def _seen_from(folder: Path, name: str) -> Path:
    return folder / name.removeprefix("file://")
