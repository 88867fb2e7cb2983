"""Every operation does what its name says, keeps the size, and gives equal pixels for equal seeds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlm_detect.images.hard_photos import HARD


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A landscape of smooth colours with fine texture and an edge."""
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([60 + x, 80 + y, 150 - y / 2], -1) + np.random.default_rng(0).normal(0, 6, (90, 120, 3))
    pixels[40:60, 30:90] = (200, 40, 40)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def made(name: str, photo: Image.Image, seed: int = 0) -> np.ndarray:
    return np.asarray(HARD[name](photo, np.random.default_rng(seed)), dtype=float)


@pytest.mark.parametrize("name", HARD)
def test_size_mode_and_seed(name, photo):
    first = HARD[name](photo, np.random.default_rng(0))
    assert (first.size, first.mode) == (photo.size, "RGB")
    assert first.tobytes() == HARD[name](photo, np.random.default_rng(0)).tobytes() != photo.tobytes()
    for side in (1, 2, 5):
        assert HARD[name](photo.resize((side, side)), np.random.default_rng(0)).size == (side, side)


def test_effect_of_each_operation(photo):
    before = np.asarray(photo, dtype=float)
    night = made("night", photo)
    assert night.mean() < 0.8 * before.mean()
    assert night[..., 2].mean() / night[..., 0].mean() < before[..., 2].mean() / before[..., 0].mean()  # warm
    texture = (slice(5, 35), slice(40, 80), 0)
    assert np.diff(made("retouched", photo)[texture]).std() < np.diff(before[texture]).std()
    product = made("product", photo)
    assert product[0, 0].min() > 200
    assert np.abs(product[45, 60] - before[45, 60]).max() < 40  # the thing in the middle stays
    assert made("screenshot", photo)[4, 60].max() < 80  # the window's bar
    grey = made("grey", photo)
    assert np.ptp(grey, axis=-1).max() == 0
    exposed = made("long_exposure", photo)
    assert np.abs(np.diff(exposed, axis=1)).max() < 0.7 * np.abs(np.diff(before, axis=1)).max()
