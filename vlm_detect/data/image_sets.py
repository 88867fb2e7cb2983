"""Image datasets that others made, as they lie on disk: which image has which label, generator, class and split.

    images = open_image_set("cifake", "archive/")              # {train,test}/{REAL,FAKE}/0000 (7).jpg, or parquet
    images = open_image_set("cifake", "kaggle")                # fetched by kagglehub
    images = open_image_set("genimage", "GenImage/")           # <generator>/{train,val}/{ai,nature}
    images = open_image_set("folders", "set/")                 # 0_real and 1_fake, REAL, FAKE, EDITED, ...
    images = open_image_set("folders", "labels.csv")           # or a folder with such a table beside its images
    images = open_image_set("hub", "owner/set:config:split")   # a Hub dataset or `datasets` folder with a label column

    @importer("my_layout")                                     # an importer of one's own
    def my_layout(src: str, selection: Selection) -> ImageSet: ...

The layouts of this package are in `layouts.py`. An importer lists and reads bytes; `import_step.py` decodes. The order
of images is that of hashes of their names, so that no stretch of a set is all one class; a Hub dataset of which only a
part is wanted (a limit) is streamed in its own order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vlm_detect.data.label_reading import told
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
    """Labelled images in a fixed order. `fingerprint` changes when the list does; `skipped` as of a `Source`.

    `reading` says how the labels were read, in a line.
    """

    skipped: Counter[str]
    reading: str
    entries: Sequence[Entry]
    fingerprint: str

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        """The images `start` to `stop`; in place of one that cannot be read, the reason."""


# What lists the images of a SRC; UserError where it has not that layout.
Importer = Callable[[str, Selection], ImageSet]
IMPORTERS: Registry[Importer] = Registry("importer", ["vlm_detect.data.layouts"])
# The entry of an image: its path, the folders above it within SRC, and what words mean labels. None: it has none.
EntryOf = Callable[[Path, Sequence[str], Mapping[str, Label]], Entry | None]


def importer(name: str) -> Callable[[Importer], Importer]:
    """Register a function as the layout `--from name`."""

    def register(function: Importer) -> Importer:
        IMPORTERS.add(name, function)
        return function

    return register


def open_image_set(layout: str, src: str, selection: Selection | None = None) -> ImageSet:
    """The images of a set; `UserError` where `src` has not that layout."""
    if src == "kaggle" or src.startswith("kaggle:"):
        src = fetch_from_kaggle(src.partition(":")[2] or CIFAKE_HANDLE)
    return IMPORTERS[layout](src, selection or Selection())


def fetch_from_kaggle(handle: str) -> str:
    """The folder in which kagglehub keeps a dataset, downloaded where it is not there yet."""
    require("kaggle", "kagglehub")
    import kagglehub

    try:
        return str(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub passes on the errors of its HTTP library
        reason = first_line(error)
        raise UserError(
            f"kaggle:{handle}: Kaggle does not give it ({reason}); check the name and the network"
        ) from error


def folder_of(src: str) -> Path:
    """SRC as a folder; UserError where there is none."""
    folder = Path(src).expanduser()
    if not folder.is_dir():
        raise UserError(f"{src}: no such folder; give the one that holds the images")
    return folder


def in_folders(
    folder: Path,
    entry_of: EntryOf,
    selection: Selection,
    *,
    layout: str,
    finish: Callable[[Sequence[Entry]], Sequence[Entry]] = list,
    where: str = "lies in folders",
) -> FileSet:
    """The images below `folder` that have an entry, all of them seen once more by `finish`.

    Raises:
        UserError: where none has; `where` says how it would have to be.
    """
    words = LABEL_NAMES | {word_of(name): label for name, label in selection.labels}
    found = look_into(folder)
    listed: list[Entry] = []
    readings: Counter[tuple[str, Label]] = Counter()  # (the folder that names the label, the label)
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
        found.skipped["image in a folder that names no label"] += outside
    # hashes of the paths within the folder, so that a copy elsewhere has the same order
    entries.sort(key=lambda entry: text_digest([Path(entry.where).relative_to(folder).as_posix()]))
    return FileSet(select(entries, selection), found.skipped, f"folders: {told(readings)}")


class FileSet:
    """Files in folders that name the label, or that a table lists."""

    def __init__(self, entries: Sequence[Entry], skipped: Counter[str], reading: str = "") -> None:
        self.entries, self.skipped = entries, skipped
        self.reading = reading or f"folders: {read_as(entries)}"
        self.fingerprint = fingerprint(entries)

    def read(self, start: int, stop: int) -> Iterator[tuple[Entry, bytes | ImageRejected]]:
        for entry in self.entries[start:stop]:
            try:
                yield entry, read_bounded(Path(entry.where))
            except ImageRejected as rejected:
                yield entry, rejected
