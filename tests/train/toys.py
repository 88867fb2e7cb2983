"""Datasets that can be learned in seconds, and a folder with a tiny model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from tests.factories import tiny_vlm
from vlm_detect.columns import IMAGE_FEATURES, PAIR_FEATURES
from vlm_detect.images.stored import StoredImage


def toy_image(generated: bool, rng: np.random.Generator, side: int = 16) -> Image.Image:
    """Noise around dark grey for real, around light grey for generated: separable at a glance."""
    pixels = rng.normal(180 if generated else 70, 15, (side, side, 3)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def stored(image: Image.Image) -> StoredImage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return StoredImage(buffer.getvalue())


def toy_pair(index: int, rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    row = {
        "pair_id": f"pair{index}",
        "group": f"photo{index}",
        "image": toy_image(False, rng),
        "image_label": "real",
        "twin": toy_image(True, rng),
        "kind": "caption",
        "generator": "toy",
        "caption": f"thing {index}",
        "prompt": f"thing {index}",
        "seed": index,
        "edit": None,
        "source": None,
        "receipt": None,
    }
    return {**row, **changes}


def toy_pairs(n: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset.from_list([toy_pair(i, rng) for i in range(n)], features=PAIR_FEATURES)


def toy_images(labels: list[str], seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "image": toy_image(label != "real", rng),
            "label": label,
            "generator": "" if label == "real" else "toy",
            "object_class": "frog",
            "group": str(i),
            "source": None,
        }
        for i, label in enumerate(labels)
    ]
    return Dataset.from_list(rows, features=IMAGE_FEATURES)


def save_toy_pairs(folder: Path, n_train: int = 8, n_validation: int = 4) -> Path:
    """A pair dataset on disk, as `datasets.load_dataset(folder)` reads it."""
    (folder / "data").mkdir(parents=True)
    for split, n, seed in (("train", n_train, 0), ("validation", n_validation, 1), ("test", 2, 2)):
        toy_pairs(n, seed).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def save_tiny_model(folder: Path) -> Path:
    """A tiny moondream with random weights in a folder of its own."""
    vlm = tiny_vlm()
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder
