"""The built-in layouts: CIFAKE, GenImage, label folders or label tables, and Hub datasets."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlm_detect.data.dataset_rows import DatasetRows
from vlm_detect.data.image_sets import CIFAR_CLASSES, FileSet, ImageSet, folder_of, importer, in_folders
from vlm_detect.data.label_reading import GENERATOR_COLUMNS
from vlm_detect.data.label_tables import TableRow, find_tables, read_tables
from vlm_detect.data.labelled_rows import RowSet, hub_rows, text_of, word_of
from vlm_detect.data.selection import Entry, Selection, select
from vlm_detect.data.sources import look_into, text_digest
from vlm_detect.data.splits import SPLIT_WORDS, Split
from vlm_detect.errors import UserError
from vlm_detect.records import LABEL_NAMES, Label

CIFAKE_GENERATOR = "stable-diffusion-1.4"


@importer("cifake")
def cifake(src: str, selection: Selection) -> ImageSet:
    """{train,test}/{REAL,FAKE}, or `train-*.parquet` and `test-*.parquet`."""
    folder = folder_of(src)
    if any(folder.glob("train-*.parquet")):
        return _cifake_rows(folder, selection)
    return in_folders(folder, _cifake_entry, selection, layout="cifake")


@importer("genimage")
def genimage(src: str, selection: Selection) -> ImageSet:
    """<generator>/{train,val}/{ai,nature}."""
    return in_folders(folder_of(src), _genimage_entry, selection, layout="genimage", finish=_with_synsets)


@importer("folders")
def folders(src: str, selection: Selection) -> ImageSet:
    """0_real and 1_fake, REAL, FAKE, EDITED, ..., or a table of files and labels."""
    if (table := Path(src).expanduser()).is_file():
        return _tables(table, [], selection)
    folder = folder_of(src)
    words = LABEL_NAMES | {word_of(name): label for name, label in selection.labels}
    images = look_into(folder).images
    named = any(_folder_entry(path, path.relative_to(folder).parts[:-1], words) for path in images)
    if not named and find_tables(folder):
        return _tables(folder, images, selection)
    where = "is in a label folder or in a table with labels"
    return in_folders(folder, _folder_entry, selection, layout="folders", where=where)


@importer("hub")
def hub(src: str, selection: Selection) -> ImageSet:
    """A Hub dataset or `datasets` folder with a label column."""
    return hub_rows(src, selection)


def cifake_class(file_name: str) -> str:
    """The class in a CIFAKE file name: "0000.jpg" is CIFAR-10's first, "0000 (7).jpg" its seventh."""
    found = re.search(r"\((\d+)\)\.\w+$", file_name)
    number = int(found.group(1)) if found else 1
    if not 1 <= number <= len(CIFAR_CLASSES):
        raise UserError(f"{file_name}: ends in ({number}), where CIFAKE has classes 1 to {len(CIFAR_CLASSES)}")
    return CIFAR_CLASSES[number - 1]


def _cifake_entry(path: Path, parts: Sequence[str], words: Mapping[str, Label]) -> Entry | None:
    """{train,test}/{REAL,FAKE}, below any folders."""
    names = [word_of(part) for part in parts[-2:]]
    if len(names) < 2 or names[0] not in ("train", "test") or names[1] not in ("real", "fake"):
        return None
    label = words[names[1]]
    generator = CIFAKE_GENERATOR if label == "generated" else ""
    return Entry(str(path), label, generator, cifake_class(path.name), split=SPLIT_WORDS[names[0]])


def _genimage_entry(path: Path, parts: Sequence[str], words: Mapping[str, Label]) -> Entry | None:
    """<generator>/{train,val}/{ai,nature}; results are published on `val`, so that is the test split.

    Unpacked archives may add a folder (imagenet_ai_0419_biggan) in between; the outermost is the generator.
    """
    names = [word_of(part) for part in parts[-2:]]
    if len(names) < 2 or names[0] not in ("train", "val") or names[1] not in ("ai", "nature"):
        return None
    # The folder may be given as ".", "..", or a link, whose own name counts.
    generator = parts[0] if len(parts) > 2 else Path(os.path.normpath(path.parents[2].absolute())).name
    label = words[names[1]]
    # n01440764_10027.JPEG is a photo of that synset; 789_biggan_00101.png and VQDM_1000_200_00_017_vqdm_00020.png show
    # ImageNet's classes 789 and 17, which number the synsets in order; validation photos have no class
    synset = re.match(r"(n\d{8})_", path.name)
    number = re.search(r"(?:^|_)(\d{1,3})_[A-Za-z]\w*_\d+$", path.stem)
    object_class = synset.group(1) if synset else str(int(number.group(1))) if number else ""
    split: Split = "train" if names[0] == "train" else "test"
    return Entry(str(path), label, generator if label == "generated" else "", object_class, split=split)


def _with_synsets(entries: Sequence[Entry]) -> list[Entry]:
    """Map class numbers to synsets if the photos cover all thousand; otherwise they cannot be matched."""
    synsets = sorted({entry.object_class for entry in entries if entry.object_class.startswith("n")})
    if len(synsets) < 1000:
        return list(entries)
    return [
        replace(entry, object_class=synsets[int(entry.object_class)]) if entry.object_class.isdigit() else entry
        for entry in entries
    ]


def _folder_entry(path: Path, parts: Sequence[str], words: Mapping[str, Label]) -> Entry | None:
    """The innermost label folder gives the label; of the other folders the first is the generator, the next the
    class."""
    names = [word_of(part) for part in parts]
    labels = [words[name] for name in names if name in words]
    if not labels:
        return None
    splits = [SPLIT_WORDS[name] for name in names if name in SPLIT_WORDS]
    others = [part for part, name in zip(parts, names, strict=True) if name not in words and name not in SPLIT_WORDS]
    generator = others[0] if others and labels[-1] != "real" else ""
    return Entry(
        str(path), labels[-1], generator, others[1] if len(others) > 1 else "", split=splits[-1] if splits else None
    )


def listed_files(folder: Path, selection: Selection, tables: Mapping[str, tuple[str, Split | None]]) -> FileSet:
    """Images listed in tables of known names: (the format of a file's path, the published split) of each."""
    found = [table for table in find_tables(folder) if table.name in tables]
    if not found:
        raise UserError(f"{folder}: contains no {' and no '.join(tables)}, nor does a folder in it")
    rows: list[TableRow] = []
    splits: dict[Path, Split] = {}
    for table in found:
        file_format, split = tables[table.name]
        rows += (read := read_tables(table, file_format=file_format, given=dict(selection.labels)))
        if split is not None:
            splits |= dict.fromkeys((row.path for row in read), split)
    return _of_rows(rows, folder, look_into(folder).images, selection, splits)


def _tables(place: Path, images: Sequence[Path], selection: Selection) -> FileSet:
    """Images listed in tables with labels; `images` are the existing files."""
    columns = {"file_column": selection.image_column, "label_column": selection.label_column}
    rows = read_tables(place, given=dict(selection.labels), **columns)
    folder = place.parent if place.is_file() else place
    if not rows:
        tables = ", ".join(table.name for table in find_tables(folder))
        raise UserError(f"{place}: no label folders, and no labels in its tables ({tables}); give --label_column")
    return _of_rows(rows, folder, images, selection, {})


def _of_rows(
    rows: Sequence[TableRow],
    folder: Path,
    images: Sequence[Path],
    selection: Selection,
    published: Mapping[Path, Split],
) -> FileSet:
    entries = []
    for listed in rows:
        label = listed.reader(listed.row)
        parts = listed.path.relative_to(folder).parts[:-1] if listed.path.is_relative_to(folder) else ()
        names = [published.get(listed.path, text_of(listed.row, "split")), *reversed(parts)]
        entries.append(
            Entry(
                str(listed.path),
                label,
                text_of(listed.row, *GENERATOR_COLUMNS) if label != "real" else "",
                text_of(listed.row, "object_class", "class_name", "category"),
                group=text_of(listed.row, "group") or None,
                split=next((SPLIT_WORDS[word_of(name)] for name in names if word_of(name) in SPLIT_WORDS), None),
                licence=text_of(listed.row, "licence", "license") or None,
            )
        )
    entries.sort(key=lambda entry: text_digest([entry.where]))
    unlisted = len(set(images) - {row.path for row in rows})
    skipped = Counter({"image not in any table": unlisted} if unlisted else {})
    readers = {id(row.reader): row.reader for row in rows}
    return FileSet(select(entries, selection), skipped, "; ".join(reader.describe() for reader in readers.values()))


def _cifake_rows(folder: Path, selection: Selection) -> RowSet:
    """CIFAKE as `train-*.parquet` and `test-*.parquet` (image, label real/fake), and, if requested, edits next to it.

    An edit has its original's name and gets its group: edits of real images are from the training images, edits of
    fakes from the official test images.
    """
    files = {"train": sorted(folder.glob("train-*.parquet")), "test": sorted(folder.glob("test-*.parquet"))}
    if selection.edited:
        files |= {f"edited_from_{name}": [folder / f"edited_from_{name}.parquet"] for name in ("real", "fake")}
    parts: list[DatasetRows] = []
    entries: list[Entry] = []
    for name, paths in files.items():
        if not paths:
            continue
        parts.append(DatasetRows.of_parquet(paths))
        for index, (path, word) in enumerate(zip(parts[-1].paths(), parts[-1].column("label"), strict=True)):
            label = LABEL_NAMES[word]
            original = {"edited_from_real": "train/real", "edited_from_fake": "test/fake"}.get(name, f"{name}/{word}")
            entries.append(
                Entry(
                    where=f"{name}/{path}",
                    label=label,
                    generator=CIFAKE_GENERATOR if label == "generated" else "",
                    object_class=cifake_class(path),
                    group=text_digest(["cifake", original, Path(path).name])[:16],
                    split=SPLIT_WORDS.get(name),
                    place=(len(parts) - 1, index),
                )
            )
    entries.sort(key=lambda entry: text_digest([entry.where]))
    return RowSet(parts, select(entries, selection), str(folder))
