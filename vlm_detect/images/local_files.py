"""Restrict the local files that data may refer to: those in its own folder, and the caches of the Hub's libraries.

    may_name(Path("data/set"))          # from now on, rows may refer to files in it
    data = read_named(cell["path"])     # ImageRejected for a file elsewhere

The rows of a dataset and the items of a benchmark may be untrusted, and an image that they refer to is shown, copied
into other datasets and sent to endpoints. `--allow_local_paths` allows any file; the flag and the folders are stored in
environment variables, because workers are separate processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from vlm_detect.errors import ALLOW_LOCAL_PATHS, LOCAL_PATHS_ALLOWED
from vlm_detect.images.bounds import ImageRejected, read_bounded

_FOLDERS = "VLM_DETECT_DATA_FOLDERS"


def allows_all() -> bool:
    """Whether `--allow_local_paths` was given."""
    return os.environ.get(LOCAL_PATHS_ALLOWED) == "1"


def may_name(folder: Path) -> None:
    """Allow data to refer to files in this folder."""
    found = str(folder.expanduser().resolve())
    if found not in (known := _named_folders()):
        os.environ[_FOLDERS] = json.dumps([*known, found])


def is_within(path: Path, folder: Path) -> bool:
    """Whether a file is in an allowed folder, after resolving links, or any file is allowed."""
    return allows_all() or path.resolve().is_relative_to(folder.expanduser().resolve())


def read_named(name: str) -> bytes:
    """The bytes of a file in a row; raises `ImageRejected` if it is missing or not allowed."""
    try:
        path = _find(name)
    except (OSError, ValueError) as error:  # a null byte, a circular link
        raise ImageRejected("unreadable", str(error)) from error
    if path is None:
        raise ImageRejected("outside", f"{name} is not in the folder of its dataset; {ALLOW_LOCAL_PATHS} reads it")
    return read_bounded(path)


def _find(name: str) -> Path | None:
    """The allowed file; for a missing file the name, so that the reader reports it."""
    named = Path(name)
    if allows_all():
        return named
    places = [named] if named.is_absolute() else [named, *(Path(folder) / name for folder in _named_folders())]
    there = [place for place in places if place.exists()]
    return next((place for place in there if any(is_within(place, folder) for folder in _folders())), None) or (
        None if there or named.is_absolute() else named
    )


def _folders() -> Iterator[Path]:
    yield from map(Path, _named_folders())
    import datasets
    from huggingface_hub import constants

    yield Path(constants.HF_HUB_CACHE)
    yield Path(datasets.config.HF_DATASETS_CACHE)


def _named_folders() -> list[str]:
    return list(json.loads(os.environ.get(_FOLDERS, "[]")))
