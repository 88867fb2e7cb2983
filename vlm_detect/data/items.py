"""Addressed images: what a scan is made of, listed once and read anywhere, a part at a time.

    items = list(list_items("s3://bucket/tars/*.tar", skipped))      # reads no pixel
    for photo in read_items(items[1000:2000]): ...                   # SourcePhoto, or (name, why not)

Image files, members of tars (WebDataset), rows of parquet files and rows of `datasets` sets have an address each, so
that a worker reads its own part and not what stands before it. A spec is what `open_source` takes, a parquet file or
tar, a URL of either, of an image, of a folder or a glob of them, or a list of such paths and URLs.

The index of a tar is its headers: a tar on disk is not read for it, one in a store is, once.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vlm_detect.ahead import ahead
from vlm_detect.data.dataset_rows import image_cell, image_columns, is_dataset
from vlm_detect.data.remote import is_url, list_files, open_file, read_file
from vlm_detect.data.sources import (
    Source,
    SourcePhoto,
    listed,
    open_source,
    read_list,
    spelled,
    walk_images,
)
from vlm_detect.errors import UserError, first_line
from vlm_detect.images.bounds import MAX_BYTES
from vlm_detect.images.decode import SUFFIXES, ImageRejected, read_bounded
from vlm_detect.images.local_files import may_name

Kind = Literal["file", "member", "row", "dataset", "unreadable"]
_CONTAINERS = (".parquet", ".tar")
_CONNECTIONS = 16  # files of a store that are fetched at a time
_ROWS = 16
_BUFFER_BYTES = 8 << 20  # of a parquet column, which is read in one piece without


@dataclass(frozen=True, slots=True)
class Item:
    """One image by its address; `name` is what its row is called.

    `place` is the file, the container or the dataset, `at` the first byte in a tar or the number of the row, `size` the
    bytes in a tar. An "unreadable" item is a container that cannot be opened: `place` is the reason.
    """

    kind: Kind
    name: str
    place: str
    at: int = 0
    size: int = 0


def list_items(spec: str, skipped: Counter[str], image_column: str = "") -> Iterator[Item]:
    """The images of `spec` in a fixed order; `skipped` counts the other files by suffix.

    Raises:
        UserError: there are none, or they cannot be reached.
    """
    items = _listed(spec, skipped, image_column)
    first = next(items, None)
    if first is None:
        there = f"; it contains {listed(skipped)}" if skipped else ""
        raise UserError(f"{spec}: no images found there (looked for {' '.join(sorted(SUFFIXES))}{there})")
    yield first
    yield from items


def read_items(items: Iterable[Item], image_column: str = "") -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
    """The bytes of these images, in their order; for one that cannot be read, its name and why."""
    for (kind, place), some in groupby(items, key=_together):
        match kind:
            case "file":
                yield from ahead(_read_file, some, threads=_CONNECTIONS if place else 0)
            case "member":
                yield from _opened(_read_members, place, list(some))
            case "row":
                yield from _opened(lambda place, run: _read_rows(place, run, image_column), place, list(some))
            case "dataset":
                yield from _read_dataset(place, list(some))
            case "unreadable":
                yield from ((item.name, ImageRejected("unreadable", item.place)) for item in some)


def _together(item: Item) -> tuple[Kind, str]:
    """What is read in one go: all of a container; for files, the place says only whether they are in a store."""
    if item.kind == "file":
        return "file", "url" if is_url(item.place) else ""
    return item.kind, "" if item.kind == "unreadable" else item.place


# --- listing ---------------------------------------------------------------------------------------------------------


def _listed(spec: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    path = Path(spec).expanduser()
    if is_url(spec):
        yield from _remote(spec, skipped, image_column)
    elif path.is_file() and path.suffix.lower() == ".txt":
        for entry in read_list(path):
            yield from _file(entry, skipped, image_column)
    elif path.is_file():
        yield from _file(str(path), skipped, image_column)
    elif path.is_dir():
        yield from _folder(path, spec, skipped, image_column)
    elif glob.has_magic(spec):
        for name in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207, as in `open_source`
            if Path(name).is_file():
                yield from _file(name, skipped, image_column)
    else:
        yield from _dataset(spec)


def _file(path: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    """A file that is named itself: a container by its suffix, else an image, whatever it is called."""
    place = path if is_url(path) else os.path.abspath(path)  # noqa: PTH100, which would resolve no ".."
    match PurePosixPath(path).suffix.lower():
        case ".parquet":
            yield from _indexed(_rows, path, place, skipped, image_column)
        case ".tar":
            yield from _indexed(_members, path, place, skipped, image_column)
        case _:
            yield Item("file", spelled(path), place)


def _folder(folder: Path, spec: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    empty = True
    for path in walk_images(folder, skipped):
        empty = False
        yield Item("file", spelled(str(path)), os.path.abspath(path))  # noqa: PTH100
    if not empty:
        return
    tars = sorted(folder.rglob("*.tar"))
    if tars and not any(folder.rglob("*.parquet")):
        skipped.pop(".tar")
        for tar in tars:
            yield from _file(str(tar), skipped, image_column)
    elif is_dataset(folder):
        skipped.clear()
        yield from _dataset(spec)


def _remote(spec: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    files = list(list_files(spec))
    is_file = len(files) == 1 and files[0].endswith(spec.partition("://")[2])
    if is_file or glob.has_magic(spec):
        chosen = files
    else:
        images = [url for url in files if PurePosixPath(url).suffix.lower() in SUFFIXES]
        chosen = images or [url for url in files if PurePosixPath(url).suffix.lower() in _CONTAINERS]
        kept = set(chosen)
        skipped.update(PurePosixPath(url).suffix.lower() or "without a suffix" for url in files if url not in kept)
    for url in chosen:
        yield from _file(url, skipped, image_column)


def _dataset(spec: str) -> Iterator[Item]:
    source = _open_dataset(spec)
    for row in range(len(source)):
        yield Item("dataset", f"{spec.split(':')[0]}#{row}", spec, row)


def _indexed(
    index: Callable[[str, str, Counter[str], str], Iterator[Item]],
    name: str,
    place: str,
    skipped: Counter[str],
    image_column: str,
) -> Iterator[Item]:
    """The images of a container, and one item more for what of it cannot be read."""
    try:
        yield from index(name, place, skipped, image_column)
    except (OSError, ValueError, tarfile.TarError) as error:
        yield Item("unreadable", spelled(name), f"{first_line(error)}")


def _members(name: str, place: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    with open_file(place) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            suffix = PurePosixPath(member.name).suffix.lower()
            if member.isreg() and not member.issparse() and suffix in SUFFIXES:
                yield Item("member", spelled(f"{name}/{member.name}"), place, member.offset_data, member.size)
            elif not member.isdir():
                skipped[suffix or "without a suffix"] += 1


def _rows(name: str, place: str, skipped: Counter[str], image_column: str) -> Iterator[Item]:
    import pyarrow.parquet as pq

    with open_file(place) as file, pq.ParquetFile(file) as rows:
        try:
            _columns(rows, name, image_column)
        except UserError:
            skipped[f".parquet without an image column {image_column}".rstrip()] += 1
            return
        for row in range(rows.metadata.num_rows):
            yield Item("row", spelled(f"{name}#{row}"), place, row)


# --- reading ---------------------------------------------------------------------------------------------------------


def _opened(
    read: Callable[[str, list[Item]], Iterator[SourcePhoto | tuple[str, ImageRejected]]], place: str, run: list[Item]
) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
    """Every item of a container, the reason where it can no longer be read."""
    done = 0
    try:
        for photo in read(place, run):
            yield photo
            done += 1
    except (OSError, ValueError) as error:
        for item in run[done:]:
            yield item.name, ImageRejected("unreadable", first_line(error))


def _read_file(item: Item) -> SourcePhoto | tuple[str, ImageRejected]:
    try:
        return SourcePhoto(item.name, read_file(item.place) if is_url(item.place) else read_bounded(Path(item.place)))
    except ImageRejected as rejected:
        return item.name, rejected


def _read_members(place: str, run: Sequence[Item]) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
    with open_file(place) as file:
        for item in run:
            if item.size > MAX_BYTES:
                yield item.name, ImageRejected("too_large", f"{item.size} bytes, at most {MAX_BYTES}")
                continue
            file.seek(item.at)
            data = file.read(item.size)
            if len(data) < item.size:
                yield item.name, ImageRejected("unreadable", "the tar ends in it")
            else:
                yield SourcePhoto(item.name, data)


def _read_rows(place: str, run: Sequence[Item], image_column: str) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
    """From the row groups that hold these rows, a few rows in memory at a time."""
    import pyarrow.parquet as pq

    if not is_url(place):
        may_name(Path(place).parent)
    with open_file(place) as file, pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as rows:
        columns = _columns(rows, place, image_column)
        wanted, first = list(reversed(run)), 0
        for group in range(rows.metadata.num_row_groups):
            after = first + rows.metadata.row_group(group).num_rows
            if wanted and wanted[-1].at < after:
                row = first
                for batch in rows.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
                    while wanted and wanted[-1].at < row + len(batch):
                        item = wanted.pop()
                        (cells,) = batch.slice(item.at - row, 1).to_pylist()
                        data = image_cell(cells, columns)
                        if isinstance(data, ImageRejected):
                            yield item.name, data
                        else:
                            yield SourcePhoto(item.name, data)
                    row += len(batch)
            first = after


def _columns(rows: Any, name: str, image_column: str) -> list[str]:
    from datasets import Features

    return image_columns(Features.from_arrow_schema(rows.schema_arrow), image_column, name)


def _read_dataset(spec: str, run: Sequence[Item]) -> Iterator[SourcePhoto | tuple[str, ImageRejected]]:
    source, start = _open_dataset(spec), run[0].at
    yield from source.read(start, start + len(run))


@cache
def _open_dataset(spec: str) -> Source:
    """Of this process: a worker reads many parts of it."""
    return open_source(spec)
