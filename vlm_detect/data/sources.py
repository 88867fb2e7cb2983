"""SRC, the source of photos: a folder, a glob, a list file, a `datasets` folder or a Hub dataset.

    source = open_source("photos/")                        # *.jpg, *.png, ..., recursively
    source = open_source("photos/*.jpg", limit=100)
    source = open_source("list.txt")                       # one path per line, relative to the file
    source = open_source("nlphuji/flickr30k::test:image")  # id:config:split:column; only the id is required
    for photo in source.read(0, 10): ...

A source has a fixed order and length, so that it can be sharded; it reads bytes without decoding.

A `metadata.jsonl` or `metadata.csv` next to the images (the imagefolder convention: `file_name` relative to it) may
give for each image: `group` (what must stay in one split), `licence`, `caption`, `object_class`, and `jpeg_quality` (of
an earlier JPEG compression, such as of a PNG cut from a JPEG). Columns of the same names in a dataset mean the same.
Captions may be in another column: `open_source(SRC, caption_column="sentence")`; of a list of captions the first is
used.
"""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol

from vlm_detect.data.dataset_rows import is_dataset, open_split, split_spec
from vlm_detect.errors import UserError
from vlm_detect.images.decode import SUFFIXES, ImageRejected, read_bounded
from vlm_detect.printable import printable

_METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SourcePhoto:
    """One photo: its original bytes, and its metadata in the source."""

    path_or_id: str
    data: bytes
    group: str | None = None
    licence: str | None = None
    caption: str | None = None
    object_class: str | None = None
    jpeg_quality: int | None = None


class Source(Protocol):
    """Photos in a fixed order. `fingerprint` changes when the list of photos does.

    `skipped` counts by suffix the files that are not photos.
    """

    skipped: Counter[str]

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
        """The photos `start` to `stop`; for one that cannot be read, its id and the reason."""


def open_source(spec: str, limit: int | None = None, *, caption_column: str = "caption") -> Source:
    """The photos that `spec` names, at most the first `limit`; raises `UserError` if there are none."""
    path = Path(spec).expanduser()
    if path.is_dir():
        found = look_into(path)
        if found.images:
            return FileSource(found.images[:limit], spec, caption_column, found.skipped)
        if is_dataset(path):
            return DatasetSource(spec, limit, caption_column)
        there = f"; it contains {listed(found.skipped)}" if found.skipped else ""
        raise UserError(f"{spec}: no images in this folder (looked for {' '.join(sorted(SUFFIXES))}{there})")
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return FileSource([path][:limit], spec, caption_column)
        return FileSource([Path(entry) for entry in read_list(path)][:limit], spec, caption_column)
    if glob.has_magic(spec):
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207, because Path.glob accepts no absolute pattern
        matches = [Path(name) for name in names]
        return FileSource([match for match in matches if match.is_file()][:limit], spec, caption_column)
    if _HUB_ID.fullmatch(spec.split(":")[0]) or Path(spec.split(":")[0]).is_dir():
        return DatasetSource(spec, limit, caption_column)
    raise UserError(f"{spec}: no such file or folder (and not a Hub dataset id like owner/name)")


@dataclass
class Found:
    """The content of a folder: images in path order, and the number of other files by suffix."""

    images: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_images(folder: Path) -> list[Path]:
    """The images of `look_into`, without the skipped files."""
    return look_into(folder).images


def look_into(folder: Path) -> Found:
    """Every file in and below `folder`, except hidden ones and metadata tables.

    Links are followed, because sets often consist of them, except circular and broken ones.
    """
    found = Found()
    found.images.extend(walk_images(folder, found.skipped))
    return found


def walk_images(folder: Path, skipped: Counter[str], above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The images of `look_into` one by one, in path order, while the others are counted in `skipped`."""
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: os.path.normcase(entry.name))
    except PermissionError:
        skipped["folder without read permission"] += 1
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _METADATA_FILES:
            continue
        suffix = PurePath(entry.name).suffix.lower()
        if entry.is_symlink() and not os.access(entry, os.F_OK):  # to a missing file, or to itself
            skipped["broken link"] += 1
        elif entry.is_dir():
            yield from walk_images(folder / entry.name, skipped, above | {here})
        elif suffix in SUFFIXES and entry.is_file():
            yield folder / entry.name
        else:
            skipped[suffix or "without a suffix"] += 1


def report_skipped(named: str, skipped: Counter[str]) -> None:
    """Report on stderr the files of a folder that were skipped."""
    if skipped:
        files = f"{skipped.total()} file{'s' * (skipped.total() > 1)}"
        message = f"{named}: skipped {files} without an image suffix: {listed(skipped)}"
        print(printable(spelled(message)), file=sys.stderr)


def listed(skipped: Counter[str]) -> str:
    """Such as "3 .cr3, 1 broken link"."""
    return ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common())


def read_list(path: Path) -> Iterator[str]:
    """The paths of a list, of which relative ones are relative to its folder, and its URLs."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if entry := line.strip():
                    yield entry if "://" in entry else str(path.parent / entry)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: neither an image nor a text file with one path per line ({error})") from error


class FileSource:
    """Image files on disk, with the `metadata` file of their folder."""

    def __init__(
        self,
        paths: Sequence[Path],
        named: str,
        caption_column: str = "caption",
        skipped: Counter[str] | None = None,
    ) -> None:
        if not paths:
            raise UserError(f"{named}: no images found there; give a folder, a glob, a list of paths or a dataset")
        self.paths, self.skipped = list(paths), skipped or Counter()
        self._caption_column = caption_column
        self._metadata: dict[Path, dict[str, dict[str, Any]]] = {}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the paths and the metadata: other captions give another fingerprint."""
        texts = (json.dumps(self._facts(path), sort_keys=True) for path in self.paths)
        return text_digest(
            f"{path} {facts}" if facts != "{}" else str(path) for path, facts in zip(self.paths, texts, strict=True)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
        for path in self.paths[start:stop]:
            try:
                yield _photo(spelled(str(path)), read_bounded(path), self._facts(path), self._caption_column)
            except ImageRejected as rejected:
                yield spelled(str(path)), rejected

    def _facts(self, path: Path) -> Mapping[str, Any]:
        """The metadata of one image: from the nearest folder with a metadata file, starting at its own."""
        for folder in path.parents:
            if folder not in self._metadata:
                self._metadata[folder] = read_metadata(folder)
            if self._metadata[folder]:
                return self._metadata[folder].get(path.relative_to(folder).as_posix(), {})
        return {}


def read_metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """`file_name` -> the other columns, from the folder's metadata.jsonl or metadata.csv; empty if there is none."""
    path = next((folder / name for name in _METADATA_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (line for line in file if line.strip())
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in lines]
        for row in rows:
            if None in row:  # the csv module's key for surplus values
                raise ValueError(f"{row['file_name']} has more values than columns; quote texts with commas")
        return {row["file_name"]: row for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table with a column file_name ({type(error).__name__}: {error})") from error


class DatasetSource:
    """Rows of a `datasets` folder or Hub dataset: `id:config:split:column`. A Hub dataset is streamed."""

    def __init__(self, spec: str, limit: int | None, caption_column: str = "caption") -> None:
        name, config, split, column = split_spec(spec)
        self.name, self.skipped = name, Counter[str]()
        self._rows, length = open_split(name, config or None, split or "train", limit, column)
        self._caption_column = caption_column
        self._length = length if limit is None else min(limit, length)
        if not self._length:
            raise UserError(f"{spec}: this dataset has no rows")
        self.fingerprint = text_digest([spec, str(self._length)])

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
        for index, row in self._rows.read(range(start, min(stop, self._length))):
            path_or_id = f"{self.name}#{index}"
            data = self._rows.image_of(row)
            if isinstance(data, ImageRejected):
                yield path_or_id, data
            else:
                yield _photo(path_or_id, data, row, self._caption_column)


def _photo(path_or_id: str, data: bytes, facts: Mapping[str, Any], caption_column: str) -> SourcePhoto:
    def text(key: str) -> str | None:
        value = facts.get(key)
        if isinstance(value, list):  # such as the five captions of a Flickr photo
            value = next(iter(value), None)
        return str(value) if value not in (None, "") else None

    def quality() -> int | None:
        if (given := text("jpeg_quality")) is None:
            return None
        try:
            found = round(float(given))
        except (ValueError, OverflowError):
            found = 0
        if not 1 <= found <= 100:
            raise UserError(f"{path_or_id}: its metadata have jpeg_quality {given}; give 1 to 100, or nothing")
        return found

    return SourcePhoto(
        path_or_id=path_or_id,
        data=data,
        group=text("group"),
        licence=text("licence") or text("license"),
        caption=text(caption_column),
        object_class=text("object_class"),
        jpeg_quality=quality(),
    )


def text_digest(parts: Iterable[str]) -> str:
    """The SHA-256 of a sequence of texts."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def spelled(name: str) -> str:
    """A file's name as valid text: bytes that are not UTF-8, which tables cannot store, are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
