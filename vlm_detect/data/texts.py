"""Third-party annotations: the texts of published sets about images and regions, in one form.

    for name, notes in read_texts("synthscars", Path("SynthScars/train/annotations/train.json")): ...

- `conversations`: LLaVA's layout and similar ones, such as FakeVLM's FakeClue and TeoScardov's files: complete answers.
- `loki` (LOKI's open-ended questions): global and regional notes, with boxes.
- `synthscars` (LEGION's SynthScars): one note per marked region, with the bounding box of its polygons.
- `x_aigd` (X-AIGD): a parquet file or a folder of them; regions by polygon and category, put into words here.
- `plain`: JSON or JSONL of {image or id, text, kind?, box?, about: image | twin?}: anything else, converted to this
  form.

An image is identified by its path (by the longest suffix), by the SHA-256 of its file, or, in pairs, by `pair_id`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from vlm_detect.data.conversation_forms import read_conversation
from vlm_detect.data.named_files import json_rows
from vlm_detect.errors import UserError
from vlm_detect.records import ReasonKind, TextsLayout

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the annotated image

# X-AIGD's categories of faults: the kind, and a sentence, as the set has none.
_X_AIGD: dict[str, tuple[ReasonKind, str]] = {
    "low-level-edge_shape": ("edges", "An outline is broken or misshapen."),
    "low-level-texture": ("texture", "A surface has an unnatural texture."),
    "low-level-color": ("colour", "A colour is out of place."),
    "low-level-symbol": ("text", "Letters or symbols are malformed."),
    "high-level-semantics": ("geometry", "An object is put together wrongly."),
    "cognitive-level-commonsense": ("physics", "Something goes against common sense."),
    "cognitive-level-physics": ("physics", "Something goes against the laws of physics."),
}


@dataclass(frozen=True)
class Note:
    """A text about an image or a place in it; `kind` is None if unknown."""

    text: str
    box: Box | None = None
    kind: str | None = None
    about: Literal["image", "twin"] = "image"


def read_texts(layout: TextsLayout, path: Path) -> Iterator[tuple[str, list[Note] | ValueError]]:
    """(image identifier, its notes) of every record; a ValueError for unreadable ones.

    Raises:
        UserError: if the file has another layout.
    """
    if layout == "x_aigd":
        yield from _x_aigd(path)
        return
    reader = {"conversations": _conversation, "loki": _loki, "synthscars": _synthscars, "plain": _plain}[layout]
    for where, record in json_rows(path):
        try:
            if isinstance(record, ValueError):
                raise record
            yield reader(record)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            yield where, ValueError(what)


def _conversation(record: Any) -> tuple[str, list[Note]]:
    talk = read_conversation(record)
    name = hashlib.sha256(talk.image).hexdigest() if isinstance(talk.image, bytes) else talk.image
    return name, [Note(answer) for _, answer in talk.turns]


def _loki(record: Any) -> tuple[str, list[Note]]:
    problems = record["problems"]
    notes = [Note(str(one["desc"])) for one in problems.get("global") or ()]
    for one in problems.get("regional") or ():
        x, y, width, height = map(float, one["region"])
        notes.append(Note(str(one["desc"]), (x, y, x + width, y + height)))
    path = record["image_path"]
    return str(path[0] if isinstance(path, list) else path), notes


def _synthscars(record: Any) -> tuple[str, list[Note]]:
    if "refs" not in record:  # {"17": {...}}, as published
        (record,) = record.values()
    notes = []
    for ref in record["refs"]:
        text = str(ref.get("explanation") or ref["sentence"])
        notes.append(Note(text, _bounds([point for polygon in ref["segmentation"] for point in _points(polygon)])))
    return str(record["img_file_name"]), notes


def _plain(record: Any) -> tuple[str, list[Note]]:
    box = record.get("box")
    about = record.get("about") or "image"
    if about not in ("image", "twin"):
        raise ValueError(f"about {about!r}: give image or twin")
    of: Literal["image", "twin"] = "twin" if about == "twin" else "image"
    note = Note(str(record["text"]), _box(box) if box else None, record.get("kind"), of)
    return str(record.get("id") or record["image"]), [note]


def _x_aigd(path: Path) -> Iterator[tuple[str, list[Note] | ValueError]]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: contains no parquet file; give X-AIGD's folder, or one of its files")
    for file in files:
        with pq.ParquetFile(file) as opened:
            if not {"image", "labels"} <= set(opened.schema_arrow.names):
                raise UserError(f"{file}: lacks the columns image and labels of X-AIGD's labelled splits")
            for batch in opened.iter_batches(16, columns=["image", "labels"]):
                for row in batch.to_pylist():
                    yield _x_aigd_row(row)


def _x_aigd_row(row: Mapping[str, Any]) -> tuple[str, list[Note] | ValueError]:
    content = (row["image"] or {}).get("bytes") or b""
    name = hashlib.sha256(content).hexdigest()
    notes = []
    for label in row["labels"] or ():
        if label["label"] not in _X_AIGD:
            return name, ValueError(f"category {label['label']!r} is not one of {', '.join(_X_AIGD)}")
        kind, text = _X_AIGD[label["label"]]
        notes.append(Note(text, _bounds(label["points"] or ()), kind))
    return name, notes


def _points(polygon: Sequence[Any]) -> list[tuple[float, float]]:
    """The bounding box of [x, y, x, y, ...] or [[x, y], ...]."""
    if polygon and isinstance(polygon[0], int | float):
        return list(zip(polygon[::2], polygon[1::2], strict=True))
    return [(float(point[0]), float(point[1])) for point in polygon]


def _bounds(points: Sequence[Any]) -> Box | None:
    if not len(points):
        return None
    across, down = [float(point[0]) for point in points], [float(point[1]) for point in points]
    return min(across), min(down), max(across), max(down)


def _box(value: Any) -> Box:
    x0, y0, x1, y1 = map(float, value)
    return x0, y0, x1, y1
