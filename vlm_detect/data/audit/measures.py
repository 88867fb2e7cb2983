"""The features of the audit's probes: from one file to a few features per probe.

Wrapping is what can change while the picture stays the same: the container and its metadata, the compression tables,
the size, a border. Content is the picture: a generator that omits fine detail differs there, and so does a blur that
only one class got. No probe can distinguish these two, so content gives a baseline and never a leak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_detect.data.audit.containers import read_container
from vlm_detect.images.decode import decode_image

Features = Mapping[str, str | float]

WRAPPING = ("format", "extension", "bytes", "size", "aspect", "tables", "metadata", "border", "scale", "caption")
CONTENT = ("file_size", "frequency", "blockiness", "contrast", "thumbnail")

_CROP = 256  # pixels: side of the centred square in which fine detail is measured
_LINES = 128  # pixels of a line, enough to see whether it has a single colour
_BANDS = 8


def measure(data: bytes) -> dict[str, Features]:
    """Features by probe; raises `decode.ImageRejected` for a file that is not a usable image."""
    decoded = decode_image(data)
    container = read_container(data)
    width, height = container.size
    pixels = np.asarray(decoded.image)
    found: dict[str, Features] = {
        "format": {"container": container.format, **container.encoding},
        "bytes": {"outside": float(container.outside)},
        "size": {"width": float(width), "height": float(height)},
        "aspect": {"aspect": round(width / height, 3)},
        "metadata": container.metadata,
        "border": border(pixels),
        "file_size": {
            "log bytes": float(np.log(len(data))),
            "log bytes per pixel": float(np.log(len(data) / pixels.size)),
        },
        "frequency": frequency(pixels),
        "blockiness": {"blockiness": blockiness(pixels)},
        "contrast": contrast(pixels),
        "thumbnail": thumbnail(decoded.image),
    }
    if decoded.jpeg is not None:
        luminance = np.array(decoded.jpeg.tables[0], float)
        found["tables"] = {
            "quality": float(decoded.jpeg.quality),
            "subsampling": float(decoded.jpeg.subsampling),
            "mean step": float(luminance.mean()),
            "tables": float(len(decoded.jpeg.tables)),
        }
    return found


def border(pixels: NDArray[np.uint8]) -> Features:
    """Lines of a single colour along each side that end with a step along the complete line: padding, frames,
    letterboxes.

    A white background does not count: where the object begins, most of the line is still white.
    """
    height, width = pixels.shape[:2]
    rows = pixels[:, :: max(1, width // _LINES)].astype(np.float32)  # (lines, along, RGB)
    columns = pixels[:: max(1, height // _LINES)].astype(np.float32).swapaxes(0, 1)
    sides = {"top": rows, "bottom": rows[::-1], "left": columns, "right": columns[::-1]}
    return {name: float(_padded(lines)) for name, lines in sides.items()}


def _padded(lines: NDArray[np.float32]) -> int:
    half = lines[: max(1, len(lines) // 2)]
    colours = half.mean(axis=1)  # (lines, RGB)
    alike = np.abs(colours - colours[0]).max(axis=1) < 6
    even = half.std(axis=1).max(axis=1) < 6  # compression spreads a little of the picture into it
    flat = alike & even
    width = len(flat) if flat.all() else int(np.argmin(flat))
    if not width or width == len(half):
        return 0
    inside = lines[min(width + 1, len(lines) - 1)]
    step = np.abs(inside - colours[0]).max(axis=1)
    return width if float(np.median(step)) > 10 else 0


def frequency(pixels: NDArray[np.uint8]) -> Features:
    """Log shares of the luminance's power in bands from coarse to fine, and the strength of its finest detail."""
    grey = _grey(_centre(pixels))
    window = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])[None]
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(grey.shape[0]), np.fft.fftfreq(grey.shape[1]), indexing="ij"))
    band = np.minimum((radius / 0.5 * _BANDS).astype(int), _BANDS)  # the corners beyond 0.5 are a separate band
    sums = np.bincount(band.ravel(), power.ravel(), minlength=_BANDS + 1)
    shares = np.log(sums / max(float(sums.sum()), 1e-9) + 1e-9)
    detail = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    laplacian = float(np.log1p(np.abs(detail).mean())) if detail.size else 0.0
    return {f"band {i}": float(share) for i, share in enumerate(shares)} | {"detail": laplacian}


def blockiness(pixels: NDArray[np.uint8]) -> float:
    """Log ratio of the steps across the lines of an 8x8 grid to all other steps: the trace of an earlier JPEG
    compression."""
    grey = _grey(pixels)
    ratios = []
    for steps in (np.abs(np.diff(grey, axis=0)).mean(axis=1), np.abs(np.diff(grey, axis=1)).mean(axis=0)):
        on_grid = np.arange(len(steps)) % 8 == 7
        if on_grid.any():
            ratios.append(np.log((steps[on_grid].mean() + 0.1) / (steps[~on_grid].mean() + 0.1)))
    return float(np.mean(ratios)) if ratios else 0.0


def contrast(pixels: NDArray[np.uint8]) -> Features:
    flat = pixels.reshape(-1, 3)
    flat = flat[:: max(1, len(flat) // 16384)].astype(np.float32)
    saturation = flat.max(axis=1) - flat.min(axis=1)
    low, high = np.percentile(flat, [1, 99])
    named = {"saturation": saturation.mean(), "its spread": saturation.std(), "darkest": low, "lightest": high}
    for channel, name in enumerate(("red", "green", "blue")):
        named |= {name: flat[:, channel].mean(), f"{name}'s spread": flat[:, channel].std()}
    return {name: float(value) for name, value in named.items()}


def thumbnail(image: Image.Image) -> Features:
    small = np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32).ravel() / 255
    return {str(place): float(value) for place, value in enumerate(small)}


def _grey(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _centre(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    top, left = max(0, height - _CROP) // 2, max(0, width - _CROP) // 2
    return pixels[top : top + _CROP, left : left + _CROP]
