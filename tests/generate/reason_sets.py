"""Small datasets of the stand-in's pictures, and what a run of the step left in one."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.generate.fake_teacher import picture
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.data.pairs import open_dataset
from vlm_detect.records import Reason


def cell(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, rows: list[dict[str, Any]], features: datasets.Features) -> Path:
    (folder / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return folder


def write_pairs(folder: Path, numbers: list[int], *, edits: Collection[int] = ()) -> Path:
    rows = []
    for number in numbers:
        row = dict.fromkeys(PAIR_FEATURES) | {"pair_id": f"pair {number}", "group": f"photo {number}"}
        row |= {"image": cell(picture(number, twin=False)), "image_label": "real"}
        rows.append(row | {"twin": cell(picture(number, twin=True)), "kind": "edit" if number in edits else "caption"})
    return write(folder, rows, PAIR_FEATURES)


def reasons_of(folder: Path, column: str) -> dict[str, list[Reason]]:
    rows = open_dataset(folder)["train"]
    return {row["group"]: [Reason.from_row(one) for one in row[column]] for row in rows}


def rejects_of(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in pq.read_table(folder / "rejects.parquet").to_pylist():
        found.setdefault(row["id"], []).append(row["reason"])
    return found
