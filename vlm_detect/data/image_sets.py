"""Third-party image datasets in their original layouts: the label, generator, class and split of each image.

    images = open_image_set("cifake", "archive/")              # {train,test}/{REAL,FAKE}/0000 (7).jpg, or parquet
    images = open_image_set("cifake", "kaggle")                # downloaded by kagglehub
    images = open_image_set("genimage", "GenImage/")           # <generator>/{train,val}/{ai,nature}
    images = open_image_set("folders", "set/")                 # 0_real and 1_fake, REAL, FAKE, EDITED, ...
    images = open_image_set("folders", "labels.csv")           # or a folder with such a table
    images = open_image_set("hub", "owner/set:config:split")   # a Hub dataset or `datasets` folder with a label column
    images = open_image_set("sid", "hub")                      # a published set that has a preset

    @importer("my_layout")                                     # a custom importer
    def my_layout(src: str, selection: Selection) -> ImageSet: ...

The built-in layouts are in `layouts.py`, the presets of published sets in `published.py`. An importer lists and reads
bytes; `import_step.py` decodes. Images are ordered by hashes of their names, so that no range of a set has a single
class; a Hub dataset with a limit is streamed in its own order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vlm_detect.data.label_reading import describe_counts
from vlm_detect.data.labelled_rows import fingerprint, read_as, word_of
from vlm_detect.data.selection import Entry, Selection, select
from vlm_detect.data.sources import look_into, text_digest
from vlm_detect.errors import UserError, first_line
from vlm_detect.extras import require
from vlm_detect.images.decode import ImageRejected, read_bounded
from vlm_detect.plugins import Registry
from vlm_detect.records import LABEL_NAMES, Label

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAKE_HANDLE = "birdy654/cifake-real-and-ai-generated-synthetic-images"


class ImageSet(Protocol):
    """Labelled images in a fixed order. `fingerprint` changes with the list; `skipped` is as in a `Source`.

    `reading` is a one-line description of how labels were read.
    """

    skipped: Counter[str]
    reading: str
    entries: Sequence[Entry]
    fingerprint: str

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        """The images `start` to `stop`; for one that cannot be read, the reason."""


# Lists the images of a SRC; UserError if it does not have the layout.
Importer = Callable[[str, Selection], ImageSet]
IMPORTERS: Registry[Importer] = Registry("importer", ["vlm_detect.data.layouts", "vlm_detect.data.published"])
# The entry of an image, from its path, the folders above it within SRC, and the meanings of words. None: no label.
EntryOf = Callable[[Path, Sequence[str], Mapping[str, Label]], Entry | None]


def importer(name: str) -> Callable[[Importer], Importer]:
    """Register a function as the layout `--from name`."""

    def register(function: Importer) -> Importer:
        IMPORTERS.add(name, function)
        return function

    return register


def open_image_set(layout: str, src: str, selection: Selection | None = None) -> ImageSet:
    """The images of a set; raises `UserError` if `src` does not have that layout."""
    if src == "kaggle" or src.startswith("kaggle:"):
        src = fetch_from_kaggle(src.partition(":")[2] or CIFAKE_HANDLE)
    return IMPORTERS[layout](src, selection or Selection())


def fetch_from_kaggle(handle: str) -> str:
    """kagglehub's folder of a dataset, downloaded if necessary."""
    require("kaggle", "kagglehub")
    import kagglehub

    try:
        return str(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub raises the errors of its HTTP library
        reason = first_line(error)
        raise UserError(
            f"kaggle:{handle}: cannot be downloaded from Kaggle ({reason}); check the name and the network"
        ) from error


def folder_of(src: str) -> Path:
    """SRC as a folder; raises UserError if it does not exist."""
    folder = Path(src).expanduser()
    if not folder.is_dir():
        raise UserError(f"{src}: no such folder; give the folder of the images")
    return folder


def in_folders(
    folder: Path,
    entry_of: EntryOf,
    selection: Selection,
    *,
    layout: str,
    finish: Callable[[Sequence[Entry]], Sequence[Entry]] = list,
    where: str = "is in folders",
) -> FileSet:
    """The images below `folder` that have an entry, post-processed by `finish`.

    Raises:
        UserError: if none has an entry; `where` describes the expected layout.
    """
    words = LABEL_NAMES | {word_of(name): label for name, label in selection.labels}
    found = look_into(folder)
    listed: list[Entry] = []
    readings: Counter[tuple[str, Label]] = Counter()  # (the folder that gives the label, the label)
    for path in found.images:
        parts = path.relative_to(folder).parts[:-1]
        if (entry := entry_of(path, parts, words)) is not None and entry.label is not None:
            listed.append(entry)
            naming = (part for part in reversed(parts) if words.get(word_of(part)) == entry.label)
            readings[next(naming, "."), entry.label] += 1
    entries = list(finish(listed))
    if not entries:
        raise UserError(
            f"{folder}: none of its {len(found.images)} images {where} as --from {layout} has them; "
            "vlm-detect import-images --help shows the layouts"
        )
    if outside := len(found.images) - len(entries):
        found.skipped["image in a folder without a label"] += outside
    # hashes of relative paths, so that a copy of the folder has the same order
    entries.sort(key=lambda entry: text_digest([Path(entry.where).relative_to(folder).as_posix()]))
    return FileSet(select(entries, selection), found.skipped, f"folders: {describe_counts(readings)}")


class FileSet:
    """Files with labels from folder names, or from a table."""

    def __init__(self, entries: Sequence[Entry], skipped: Counter[str], reading: str = "") -> None:
        self.entries, self.skipped = entries, skipped
        self.reading = reading or f"folders: {read_as(entries)}"
        self.fingerprint = fingerprint(entries)

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        for entry in self.entries[start:stop]:
            try:
                data = read_bounded(Path(entry.where))
                mask = read_bounded(Path(entry.mask_file)) if entry.mask_file else entry.mask
                yield replace(entry, mask=mask), data
            except ImageRejected as rejected:
                yield entry, rejected
