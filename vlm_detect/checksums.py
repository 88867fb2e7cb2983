"""Checksums of the files in a folder, to detect altered or missing files before they are used.

write_checksums(checkpoint)          # checksums.json, the last file that a complete folder gets
damage_of(checkpoint)                # None, or "optimizer.pt is missing"
"""

from __future__ import annotations

import json
from pathlib import Path

from vlm_detect.config import file_sha256, write_json

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """The sha256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def damage_of(folder: Path) -> str | None:
    """A message about the first file that is missing or has changed; None if there is none.

    A folder of a version that wrote no checksums has no damage.
    """
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return f"{CHECKSUMS} cannot be read"
    if not isinstance(expected, dict):
        return f"{CHECKSUMS} cannot be read"
    for name, digest in expected.items():
        try:
            if file_sha256(folder / name) != digest:
                return f"{name} is not what was written"
        except OSError:
            return f"{name} is missing"
    return None
