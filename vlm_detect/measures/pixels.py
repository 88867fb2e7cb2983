"""An image's pixels and the intermediate results that several measures share, computed once.

pixels = Pixels.from_array(image)     # (H, W, 3), uint8 or float from 0 to 1
pixels.grey                           # (H, W)
ninths(pixels.gradient)               # (3, 3): the mean of each ninth of the image
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft2
from scipy.signal.windows import hann
from skimage.util import img_as_float32

Array = NDArray[np.floating[Any]]

LEVEL = 1 / 255  # one step of an 8-bit channel
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BLUE_DIFFERENCE = np.array([-0.168736, -0.331264, 0.5], np.float32)
_RED_DIFFERENCE = np.array([0.5, -0.418688, -0.081312], np.float32)
_TILE = 256  # pixels: longest side of a tile that is transformed


@dataclass(frozen=True, eq=False)
class Pixels:
    """`rgb` is (H, W, 3), float32 from 0 to 1. Everything else is computed from it on first access."""

    rgb: Array

    @classmethod
    def from_array(cls, image: NDArray[Any]) -> Pixels:
        """From an RGB array (H, W, 3): unsigned integers of full range, or floats from 0 to 1; ValueError otherwise."""
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image of shape {image.shape}: give (height, width, 3)")
        if image.dtype.kind not in "uf":
            raise ValueError(f"pixels of type {image.dtype}: give unsigned integers, or floats from 0 to 1")
        rgb = img_as_float32(image)
        if not (np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 1):
            raise ValueError("float pixels outside of 0 to 1; divide by the full range first")
        return cls(rgb)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.rgb.shape[1], self.rgb.shape[0]

    @cached_property
    def grey(self) -> Array:
        """(H, W): luma."""
        return np.asarray(self.rgb @ _LUMA, np.float32)

    @cached_property
    def darkest(self) -> Array:
        """(H, W): the minimum of a pixel's channels."""
        return np.minimum(np.minimum(self.rgb[..., 0], self.rgb[..., 1]), self.rgb[..., 2])

    @cached_property
    def lightest(self) -> Array:
        """(H, W): the maximum of a pixel's channels."""
        return np.maximum(np.maximum(self.rgb[..., 0], self.rgb[..., 1]), self.rgb[..., 2])

    @cached_property
    def chroma(self) -> tuple[Array, Array]:
        """(H, W) each: the differences of blue and of red from luma, -0.5 to 0.5."""
        return self.rgb @ _BLUE_DIFFERENCE, self.rgb @ _RED_DIFFERENCE

    @cached_property
    def residual(self) -> Array:
        """(H, W): the residual of a local plane of grey, in units of the noise's standard deviation.

        J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996): the mask
        [1 -2 1; -2 4 -2; 1 -2 1], blind to flat areas, ramps and straight edges along the axes.
        """
        grey = np.pad(self.grey, 1, mode="symmetric")
        return np.diff(np.diff(grey, 2, axis=0), 2, axis=1) / 6

    @cached_property
    def gradient(self) -> Array:
        """(H - 1, W - 1): length of the first differences of grey."""
        across, down = np.diff(self.grey, axis=1)[:-1], np.diff(self.grey, axis=0)[:, :-1]
        return np.hypot(across, down, dtype=np.float32)

    @cached_property
    def spectrum(self) -> Array:
        """Power of grey by frequency, averaged over tiles that overlap by half (P. D. Welch, 1967); as `radius`."""
        return power(self.grey)

    @cached_property
    def radius(self) -> Array:
        """Frequency of each entry of `spectrum`, in cycles a pixel: 0 to 0.5 along an axis, to 0.71 in the corners."""
        return radii(self.spectrum.shape)


def power(plane: Array) -> Array:
    """Mean squared Fourier magnitudes of a plane's tiles of at most 256 pixels a side, under a Hann window."""
    shape = min(_TILE, plane.shape[0]), min(_TILE, plane.shape[1])
    window = _window(shape)
    tiles = [plane[top : top + shape[0], left : left + shape[1]] for top, left in _corners(plane.shape, shape)]
    total = np.zeros(shape, np.float32)
    for tile in tiles:
        total += np.abs(fft2((tile - tile.mean()) * window)) ** 2
    return total / len(tiles)


@functools.lru_cache(maxsize=32)
def radii(shape: tuple[int, int]) -> Array:
    down, across = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1])
    return np.hypot(down[:, None], across[None]).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _window(shape: tuple[int, int]) -> Array:
    down, across = (hann(length + 2)[1:-1] for length in shape)  # without the zeros at its ends
    return np.outer(down, across).astype(np.float32)


def _corners(shape: tuple[int, ...], tile: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for top in _starts(shape[0], tile[0]):
        for left in _starts(shape[1], tile[1]):
            yield top, left


def _starts(length: int, tile: int) -> list[int]:
    count = 1 + -(-2 * (length - tile) // tile)
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def ninths(field: Array) -> NDArray[np.float64]:
    """(3, 3): the mean of a field (H, W) over each ninth."""
    sums, counts = field, np.ones(field.shape, np.float32)
    for axis, length in enumerate(field.shape):
        starts = [place * length // 3 for place in range(3)]
        sums, counts = (np.add.reduceat(part, starts, axis=axis, dtype=np.float64) for part in (sums, counts))
    return np.asarray(sums / counts)


def patches(field: Array, least: int = 4) -> Array:
    """(rows, columns, side^2): a field in squares, eight along its shorter side, of `least` pixels a side or more.

    The remainder at the right and the bottom is in no patch.
    """
    side = max(least, min(field.shape) // 8)
    rows, columns = field.shape[0] // side, field.shape[1] // side
    cut = field[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.transpose(0, 2, 1, 3).reshape(rows, columns, side * side)
