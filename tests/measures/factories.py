"""Images whose measures are known, and numbers whose classes differ as much as is asked for."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_detect.measures.registry import Measured


def natural(seed: int, side: int = 96, exponent: float = 2.0) -> NDArray[np.float64]:
    """(side, side, 3): a picture whose power falls with the frequency as in photos, 0.1 to 0.9."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    radius[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(side, side))) * radius ** (-exponent / 2)
        plane = np.fft.ifft2(spectrum).real
        planes.append((plane - plane.min()) / (plane.max() - plane.min()))
    luma = planes[0]
    image = np.stack([luma + 0.3 * (planes[1] - 0.5), luma, luma + 0.3 * (planes[2] - 0.5)], axis=2)
    return 0.1 + 0.8 * np.clip(image, 0, 1)


def noisy(image: NDArray[np.float64], sigma: float, seed: int = 0) -> NDArray[np.float64]:
    grain = np.random.default_rng(seed).normal(0, sigma, image.shape[:2])
    return np.clip(image + grain[..., None], 0, 1)


def jpeg(image: NDArray[np.float64], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def resized(image: NDArray[np.float64], side: int, method: Image.Resampling) -> NDArray[np.float64]:
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    return np.asarray(picture.resize((side, side), method)) / 255


def random_measurements(
    n: int,
    shifts: dict[str, float],
    *,
    seed: int = 0,
    size: tuple[int, int] = (32, 32),
    jpeg_quality: int | None = None,
    offset: float = 0.0,
) -> tuple[list[Measured], NDArray[np.bool_], list[str]]:
    """Of n photos and n generated images: their numbers, normal but for a class's shift, the labels, the groups."""
    rng = np.random.default_rng(seed)
    generated = np.arange(2 * n) % 2 == 1
    measured = []
    for is_generated in generated:
        values = {name: round(float(rng.normal(offset + shift * is_generated)), 6) for name, shift in shifts.items()}
        measured.append(Measured(values, size, jpeg_quality))
    return measured, generated, [f"photo {i // 2} of {seed}" for i in range(2 * n)]
