"""Small image datasets that a CNN learns in seconds: a planted mark tells generated from real."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_detect.columns import IMAGE_FEATURES

MARK = 8  # side of the mark, in pixels


def picture(label: str, rng: np.random.Generator, side: int = 32, corner: tuple[int, int] | None = None) -> np.ndarray:
    """Grey noise; a generated image has a bright red square somewhere (its top left at `corner`), an edited a blue."""
    pixels = rng.integers(60, 160, (side, side, 1)).repeat(3, axis=2).astype(np.uint8)
    y, x = corner or rng.integers(0, side - MARK + 1, 2)
    if label != "real":
        pixels[y : y + MARK, x : x + MARK] = (250, 20, 20) if label == "generated" else (20, 20, 250)
    return pixels


def png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def image_row(index: int, label: str, rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    row = {
        "image": png(picture(label, rng)),
        "label": label,
        "generator": ("", "sd", "gan")[1 + index // 2 % 2] if label == "generated" else "",
        "object_class": ("cat", "dog")[index // 2 % 2],
        "group": f"{label}{index}",
        "source": None,
    }
    return {**row, **changes}


def save_images(
    folder: Path, labels: Sequence[str] = ("real", "generated"), n: int = 64, n_scored: int = 24, seed: int = 0
) -> Path:
    """An image dataset with train, validation and test; labels in turn."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", n), ("validation", n_scored), ("test", n_scored)):
        rows = [image_row(i, labels[i % len(labels)], rng) for i in range(count)]
        save_rows(folder, split, [{**row, "group": f"{split}-{row['group']}"} for row in rows])
    return folder


def save_rows(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGE_FEATURES.arrow_schema), path)
