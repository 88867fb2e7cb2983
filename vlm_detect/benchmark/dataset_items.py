"""A pair or image dataset as a benchmark: yes/no questions about each image of one split.

"Is this image AI-generated?" is asked about real and generated images; the scorer adds "Is this a real photo?". About
edited images and their originals the question is whether a part was altered; where an image dataset does not name the
originals, an equal number of its photos is used.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.data.pairs import known_labels
from vlm_detect.errors import UserError
from vlm_detect.images.decode import decode_image
from vlm_detect.images.local_files import may_name
from vlm_detect.images.stored import StoredImage
from vlm_detect.questions.ask import EDIT_QUESTION, FAKE_QUESTION, NO, YES
from vlm_detect.records import Item, Pair, Source, instruction_of, label_of_twin
from vlm_detect.schema import check_folder

PAIR_COLUMNS = {"pair_id", "group", "image", "image_label", "twin", "kind", "generator"}
IMAGE_COLUMNS = {"image", "label", "group"}


def dataset_benchmark(folder: Path, *, split: str = "test") -> Benchmark:
    """One item per image of `split`; a photo with several twins is used once."""
    rows = load_split(folder, split)
    is_pairs = set(rows.column_names) >= PAIR_COLUMNS
    items: dict[str, Item] = {}
    digest = hashlib.sha256()
    for item, data in (_pair_items if is_pairs else _image_items)(rows):
        name = f"{item.metadata['asked']}:{hashlib.sha256(data).hexdigest()}"
        digest.update(f"{name}{item.id}{item.ground_truth}{item.metadata}".encode())
        items.setdefault(name, item)
    if not items:
        raise UserError(f"{folder}: its {split} split has no rows; choose another with --split")

    images = DatasetImages(folder, rows)
    return Benchmark(f"{folder.name} ({split})", list(items.values()), images.image, digest.hexdigest(), dataset=images)


def load_split(folder: Path, split: str) -> Dataset:
    """The rows of one split, images as undecoded bytes; `UserError` where the folder is neither a pair nor an image
    dataset."""
    if not list(folder.glob(f"data/{split}-*.parquet")):
        found = sorted({file.name.split("-")[0] for file in folder.glob("data/*.parquet")})
        have = f"it has {', '.join(found)}" if found else "it has no data/*.parquet: make it with vlm-detect make-pairs"
        raise UserError(f"{folder}: no split named {split}; {have}")
    check_folder(folder)
    may_name(folder)
    files = sorted(str(file) for file in folder.glob(f"data/{split}-*.parquet"))
    rows = load_dataset("parquet", data_files={split: files}, split=split)
    columns = set(rows.column_names)
    if not (columns >= PAIR_COLUMNS or columns >= IMAGE_COLUMNS):
        missing = sorted((IMAGE_COLUMNS if "label" in columns else PAIR_COLUMNS) - columns)
        raise UserError(f"{folder}: neither a pair nor an image dataset; columns {', '.join(missing)} are missing")
    if not columns >= PAIR_COLUMNS:
        rows = known_labels(rows, folder)
    for column in columns & {"image", "twin"}:
        rows = rows.cast_column(column, ImageFeature(decode=False))
    return rows


def _pair_items(rows: Dataset) -> Iterator[tuple[Item, bytes]]:
    for index, row in enumerate(rows):
        label, made_from = label_of_twin(row["kind"]), row["image_label"]
        edited = label == "edited"
        shared = {"group": row["group"], "pair_id": row["pair_id"], "caption": row.get("caption") or ""}
        shared |= {"made_from": made_from} if edited else {}
        shared |= {"instruction": said} if (said := instruction_of(row)) else {}
        yield (
            _item(f"{row['pair_id']}/image", f"{index}:image", made_from, _maker(row), edited, shared),
            StoredImage.from_cell(row["image"]).content,
        )
        about = {**shared, "twin_kind": row["kind"]}
        yield (
            _item(f"{row['pair_id']}/twin", f"{index}:twin", label, row["generator"], edited, about),
            StoredImage.from_cell(row["twin"]).content,
        )


def _maker(row: dict[str, Any]) -> str:
    """The generator of a pair's image: an edit of a twin has that twin's generator."""
    return "real" if row["image_label"] == "real" else row["generator"] or ""


def _image_items(rows: Dataset) -> Iterator[tuple[Item, bytes]]:
    labels = rows["label"]
    photos = [index for index, label in enumerate(labels) if label == "real"]
    unaltered = set(random.Random(0).sample(photos, min(len(photos), sum(label == "edited" for label in labels))))
    for index, row in enumerate(rows):
        label, data = row["label"], StoredImage.from_cell(row["image"]).content
        about = {"group": row["group"], "object_class": row.get("object_class") or ""}
        generator = row.get("generator") or ""
        yield _item(f"{index}", f"{index}:image", label, generator, label == "edited", about), data
        if index in unaltered:
            yield _item(f"{index}/unaltered", f"{index}:image", label, generator, True, about), data


def _item(id_: str, ref: str, label: str, generator: str, about_edits: bool, metadata: dict[str, Any]) -> Item:
    yes = label == "edited" if about_edits else label == "generated"
    asked = "edited" if about_edits else "generated"
    facts = {**metadata, "label": label, "generator": generator, "asked": asked}
    question = EDIT_QUESTION if about_edits else FAKE_QUESTION
    return Item(id_, "true_false", (ref,), question, YES if yes else NO, (), facts)


def dataset_pairs(folder: Path, split: str) -> tuple[list[Pair], Callable[[str], bytes]]:
    """(photo, twin) of every row of `split`, and how to get the file of each: the input of `build.build`.

    In an image dataset, which has no pairs, photos and other images are paired at random, within an object class as far
    as possible, then across classes.
    """
    rows = load_split(folder, split)

    def data(ref: str) -> bytes:
        index, _, column = ref.partition(":")
        return StoredImage.from_cell(rows[int(index)][column]).content

    if not set(rows.column_names) >= PAIR_COLUMNS:
        return _matched(rows), data
    pairs = []
    first: dict[str, str] = {}  # a photo has a row for each of its twins, but is a single image
    for index, row in enumerate(rows):
        label = label_of_twin(row["kind"])
        edited = label == "edited"
        if row["image_label"] != "real" and not edited:
            continue
        twin = Source(
            f"{index}:twin",
            label,
            row["generator"] or "",
            row["group"],
            row["kind"],
            caption=row.get("caption") or "",
            edit=row.get("edit"),
            size=decode_image(StoredImage.from_cell(row["twin"]).content).image.size if edited else None,
        )
        ref = first.setdefault(StoredImage.from_cell(row["image"]).sha256, f"{index}:image")
        pairs.append((Source(ref, row["image_label"], _maker(row), row["group"]), twin))
    return pairs, data


def _matched(rows: Dataset) -> list[Pair]:
    by_label: dict[str, dict[str, list[Source]]] = defaultdict(lambda: defaultdict(list))
    columns = rows.select_columns(
        [c for c in ("label", "generator", "group", "object_class") if c in rows.column_names]
    )
    for index, row in enumerate(columns):
        name = row.get("object_class") or ""
        source = Source(f"{index}:image", row["label"], row.get("generator") or "", row["group"], object_class=name)
        by_label[row["label"]][name].append(source)
    rng = random.Random(0)
    return [pair for label in ("generated", "edited") for pair in _random_pairs(by_label["real"], by_label[label], rng)]


def _random_pairs(
    photos: dict[str, list[Source]], others: dict[str, list[Source]], rng: random.Random
) -> Iterator[Pair]:
    """Pairs within an object class, then among the rest."""
    rest: tuple[list[Source], list[Source]] = ([], [])
    for name in sorted(photos.keys() | others.keys()):
        shuffled = [rng.sample(side.get(name, []), len(side.get(name, []))) for side in (photos, others)]
        yield from zip(*shuffled, strict=False)
        both = min(map(len, shuffled))
        for left, side in zip(rest, shuffled, strict=True):
            left.extend(side[both:])
    rng.shuffle(rest[1])
    yield from zip(*rest, strict=False)
