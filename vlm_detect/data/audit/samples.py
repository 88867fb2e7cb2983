"""The input of an audit: a sample of a dataset's images as undecoded bytes, with labels and groups.

    samples = read_samples("data/pairs", 2000)    # a pair or image dataset, a folder of parquet, or a Hub dataset
    samples = read_samples("somebodys_set/")      # real/ and fake/, 0_real/ and 1_fake/, ... at any depth

Of a large set a sample is read, balanced over classes; parquet is read by row groups, so that little of a large file
has to be read. The sample is chosen by hashes, so it is the same for the same set.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from fsspec import AbstractFileSystem

from vlm_detect.data.dataset_rows import is_offline, open_hub_dataset
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.data.label_reading import LABEL_COLUMNS, LabelReader
from vlm_detect.data.sources import FileSource, text_digest
from vlm_detect.errors import UserError, first_line
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.local_files import may_name
from vlm_detect.images.stored import StoredImage
from vlm_detect.records import Label, label_of_twin
from vlm_detect.schema import check_folder


@dataclass(frozen=True)
class Sample:
    """One image; `role` distinguishes the two members of a pair, and is "image" otherwise."""

    data: bytes
    label: Label
    group: str
    kind: str = ""  # of its pair: caption, vae, edit, instruct
    name: str = ""  # of its file, if it has one
    caption: str = ""
    scale: float | None = None  # output pixels per source pixel, if recorded


@dataclass(frozen=True)
class Samples:
    """The sample of a set of `total` images, duplicates counted once; `unread` counts unreadable ones."""

    samples: list[Sample]
    total: int
    unread: Counter[str]


def read_samples(spec: str | Path, max_images: int) -> Samples:
    """At most about `max_images` images; raises `UserError` if `spec` has no labels."""
    path = Path(spec).expanduser()
    if not path.is_dir() and is_offline():
        return _from_cache(str(spec), max_images)
    if not path.is_dir():
        return _from_parquet(*_hub_files(str(spec)), str(spec), max_images)
    check_folder(path)
    may_name(path)
    files = sorted(str(file) for file in path.rglob("*.parquet") if not file.name.startswith("."))
    if files:
        return _from_parquet(fsspec.filesystem("file"), files, str(spec), max_images)
    return _from_files(path, max_images)


def _from_cache(name: str, max_images: int) -> Samples:
    """A Hub dataset in the local cache: its files as `hf download` fetched them, else what `datasets` made of them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    local = fsspec.filesystem("file")
    try:
        fetched = Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except HFValidationError as error:
        raise UserError(f"{name}: no such folder, and no Hub dataset id like owner/name") from error
    except LocalEntryNotFoundError:
        fetched = None
    if fetched and (files := sorted(map(str, fetched.rglob("*.parquet")))):
        return _from_parquet(local, files, name, max_images)
    with tempfile.TemporaryDirectory() as folder:
        written = []
        for split, rows in open_hub_dataset(name).items():
            written.append(str(Path(folder) / f"{split}.parquet"))
            rows.to_parquet(written[-1])
        return _from_parquet(local, written, name, max_images)


def _hub_files(name: str) -> tuple[AbstractFileSystem, list[str]]:
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name}: no such folder, and no Hub dataset id like owner/name") from error
    files = HfFileSystem()
    try:
        found = sorted(files.glob(f"datasets/{name}/**/*.parquet"))
    except Exception as error:  # the Hub client raises the errors of its HTTP library, which varies
        reason = first_line(error)
        raise UserError(f"{name}: neither a local folder nor an accessible Hub dataset ({reason})") from error
    if not found:
        raise UserError(f"{name}: the Hub has no parquet files of this dataset; download it and give the folder")
    return files, found


# --- folders -------------------------------------------------------------------------------------------------------


def _from_files(folder: Path, max_images: int) -> Samples:
    listed = open_image_set("folders", str(folder)).entries
    entries = [(entry, entry.label) for entry in listed if entry.label is not None]
    stems = [PurePath(entry.where).stem for entry, _ in entries]
    labels: dict[str, set[str]] = {}
    for (_, label), stem in zip(entries, stems, strict=True):
        labels.setdefault(stem, set()).add(label)
    # most images have the same name in both classes: photos and their twins
    paired = sum(len(found) > 1 for found in labels.values()) > len(labels) / 2
    groups = stems if paired else [PurePath(entry.where).relative_to(folder).as_posix() for entry, _ in entries]
    order = sorted(range(len(entries)), key=lambda i: (text_digest([groups[i]]), entries[i][0].where))
    room: Counter[str] = Counter()
    shares = _shares(Counter(label for _, label in entries), max_images)
    chosen = []
    for i in order:
        label = entries[i][1]
        if room[label] < shares[label]:
            room[label] += 1
            chosen.append(i)
    samples, unread = [], Counter[str]()
    source = FileSource([Path(entries[i][0].where) for i in chosen], named=str(folder))
    for i, found in zip(chosen, source.read(0, len(chosen)), strict=True):
        entry, label = entries[i]
        if isinstance(found, tuple):
            unread[label] += 1
            continue
        name, caption = PurePath(entry.where).name, found.caption or ""
        samples.append(Sample(found.data, label, found.group or groups[i], name=name, caption=caption))
    return Samples(samples, len(entries), unread)


def _shares(counts: Mapping[str, int], max_images: int) -> dict[str, int]:
    """The number of images of each label: equal, as far as each label has enough."""
    shares: dict[str, int] = {}
    left = max_images
    for place, (label, count) in enumerate(sorted(counts.items(), key=lambda item: item[1])):
        shares[label] = min(count, left // (len(counts) - place))
        left -= shares[label]
    return shares


# --- rows ----------------------------------------------------------------------------------------------------------


def _from_parquet(files: AbstractFileSystem, paths: Sequence[str], named: str, max_images: int) -> Samples:
    opened = [_open_parquet(files, path) for path in paths]
    readers = [(file, reader) for file in opened if (reader := _reader(file.schema_arrow)) is not None]
    if not readers:
        columns = ", ".join(opened[0].schema_arrow.names)
        raise UserError(
            f"{named}: neither a pair nor an image dataset; rows need an image {{bytes, path}} and a label "
            f"(one of {', '.join(LABEL_COLUMNS)}), these have {columns}"
        )
    pieces = [
        (text_digest([f"{number}/{group}"]), file, group, reader)
        for number, (file, reader) in enumerate(readers)
        for group in range(file.num_row_groups)
    ]
    totals: Counter[str] = Counter()
    for _, file, group, reader in pieces:
        totals.update(reader.labels(file, group))
    shares = _shares(totals, max_images)
    taken: Counter[str] = Counter()
    samples, unread, seen, repeats = [], Counter[str](), set[bytes](), 0
    for _, file, group, reader in sorted(pieces, key=lambda piece: piece[0]):
        wanted = {label for label, share in shares.items() if taken[label] < share}
        if not wanted & set(reader.labels(file, group)):
            continue
        for batch in file.iter_batches(16, row_groups=[group], columns=reader.columns):
            for row in batch.to_pylist():
                for sample in reader.samples(row):
                    if taken[sample.label] >= shares[sample.label]:
                        continue
                    digest = hashlib.sha256(sample.data).digest()
                    if not sample.data:
                        unread[sample.label] += 1
                    elif digest in seen:  # a photo has one row for each of its twins
                        repeats += 1
                    else:
                        seen.add(digest)
                        samples.append(sample)
                    taken[sample.label] += 1
    return Samples(samples, sum(totals.values()) - repeats, unread)


def _open_parquet(files: AbstractFileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(files.open(path, "rb"))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read as parquet ({first_line(error)})") from error


@dataclass(frozen=True)
class _Reader:
    """How the rows of one file are read."""

    columns: list[str]
    label_columns: list[str]
    label_of: Callable[[Mapping[str, Any]], Iterator[Label]]
    samples: Callable[[Mapping[str, Any]], Iterator[Sample]]

    def labels(self, file: pq.ParquetFile, group: int) -> list[Label]:
        rows = file.read_row_group(group, columns=self.label_columns).to_pylist()
        return [label for row in rows for label in self.label_of(row)]


def _reader(schema: pa.Schema) -> _Reader | None:
    names = set(schema.names)
    if {"image", "image_label", "twin", "kind"} <= names:
        columns = [c for c in ("image", "image_label", "twin", "kind", "group", "caption", "receipt") if c in names]
        return _Reader(columns, ["image_label", "kind"], _pair_labels, _pair_samples)
    if "image" not in names or not pa.types.is_struct(schema.field("image").type):
        return None
    features = Features.from_arrow_schema(schema)
    classes = {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}
    try:
        reader = LabelReader.choose(schema.names, names=classes, remedy="import it with --labels, then audit that")
    except UserError:
        return None
    column = reader.column

    def label_of(row: Mapping[str, Any]) -> Iterator[Label]:
        if (label := reader(row)) is not None:  # a row without a label has no class
            yield label

    def samples(row: Mapping[str, Any]) -> Iterator[Sample]:
        data = _bytes(row["image"])
        for label in label_of(row):
            group = str(row.get("group") or hashlib.sha256(data).hexdigest())
            yield Sample(data, label, group, name=str((row["image"] or {}).get("path") or ""), caption=_caption(row))

    columns = [c for c in ("image", column, "group", "caption") if c in names]
    return _Reader(columns, [column], label_of, samples)


def _pair_labels(row: Mapping[str, Any]) -> Iterator[Label]:
    yield row["image_label"]
    yield label_of_twin(row["kind"])


def _pair_samples(row: Mapping[str, Any]) -> Iterator[Sample]:
    encoded = json.loads((row.get("receipt") or {}).get("encode") or "{}")
    for column, label in zip(("image", "twin"), _pair_labels(row), strict=True):
        yield Sample(
            _bytes(row[column]),
            label,
            str(row["group"]),
            kind=row["kind"],
            name=str((row[column] or {}).get("path") or ""),
            caption=_caption(row),
            scale=encoded.get(f"{column}_scale"),
        )


def _caption(row: Mapping[str, Any]) -> str:
    """The first of several captions."""
    value = row.get("caption")
    if isinstance(value, list):
        value = next(iter(value), None)
    return str(value or "")


def _bytes(cell: Mapping[str, Any] | None) -> bytes:
    """An image's bytes; empty if there are none, which counts as unread."""
    try:
        return StoredImage.from_cell(cell if isinstance(cell, Mapping) else None).content
    except ImageRejected:
        return b""
