"""Datasets with checked reasons: photos and generated images of different noise, and edits with their records."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, List
from PIL import Image

from tests.measures.factories import natural, noisy
from vlm_detect.columns import IMAGE_FEATURES, PAIR_FEATURES, REASON_COLUMNS, REASON_FEATURES
from vlm_detect.generate.edit_reasons import edit_reasons
from vlm_detect.measures.calibration import MeasureCalibration, fit_calibration
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import measure_image

SIDE = 48


def with_reasons(features: Features, unit: str) -> Features:
    return Features({**features, **{name: List(REASON_FEATURES) for name in REASON_COLUMNS[unit].values()}})


def pixels(seed: int, *, generated: bool) -> np.ndarray:
    """Generated ones have less noise, by an amount of their own."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.002, 0.02) if generated else rng.uniform(0.012, 0.04)
    return np.rint(noisy(natural(seed, SIDE), sigma, seed) * 255).astype(np.uint8)


def cell(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@cache
def reasoned_images(photos: int = 40) -> tuple[Dataset, MeasureCalibration]:
    """An image dataset whose images have measured reasons, and the calibration that they rest on."""
    images = [pixels(i, generated=bool(i % 2)) for i in range(2 * photos)]
    measured = [measure_image(image) for image in images]
    labels = [bool(i % 2) for i in range(2 * photos)]
    calibration = fit_calibration(measured, labels, [f"photo {i // 2}" for i in range(2 * photos)])
    rows = []
    for i, (image, one, generated) in enumerate(zip(images, measured, labels, strict=True)):
        label = "generated" if generated else "real"
        reasons = measured_reasons(one, calibration, label, seed=str(i))
        facts = {
            "label": label,
            "generator": "toy" if generated else "",
            "object_class": "",
            "group": f"photo {i // 2}",
        }
        rows.append({**empty(IMAGE_FEATURES), **facts, "image": cell(image), "reasons": [r.to_row() for r in reasons]})
    return Dataset.from_list(rows, features=with_reasons(IMAGE_FEATURES, "images")), calibration


@cache
def reasoned_edits() -> Dataset:
    """A pair dataset of edits, whose twins say what was done and where."""
    rows = []
    operations = ("blur", "splice", "warp", "removal")
    for i in range(12):
        x, y = 16 * (i % 3), 16 * (i // 4)
        edit = {"of": "photo", "operation": operations[i % 4], "box": [x, y, x + 12, y + 12], "strength": 0.2}
        image = pixels(i, generated=False)
        twin = image.copy()
        twin[y : y + 12, x : x + 12] = 255 - twin[y : y + 12, x : x + 12]
        edit |= {"donor": None, "attempt": 0}
        facts: dict[str, Any] = {"pair_id": f"pair {i}", "image_label": "real", "kind": "edit", "generator": ""}
        facts |= {"edit": edit, "group": f"photo {i}"}
        reasons = edit_reasons(edit, (SIDE, SIDE), seed=str(i))
        images = {"image": cell(image), "twin": cell(twin)}
        rows.append(
            {
                **empty(PAIR_FEATURES),
                **facts,
                **images,
                "image_reasons": [],
                "twin_reasons": [r.to_row() for r in reasons],
            }
        )
    return Dataset.from_list(rows, features=with_reasons(PAIR_FEATURES, "pairs"))


def empty(features: Features) -> dict[str, Any]:
    return dict.fromkeys(features)
