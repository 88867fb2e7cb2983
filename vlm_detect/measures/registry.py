"""A measure: a number from an image's pixels in which photos and generated images may differ, and its wordings.

@measure("noise_strength", "noise", Words(...), map=lambda pixels: ninths(pixels.residual**2))
def noise_strength(pixels: Pixels) -> float:
    '''What it is, and its source.'''

MEASURES["noise_strength"](image)          # one number
measured = measure_image(image)            # every measure that this image is large enough for
measured.grid("noise_strength")            # (3, 3): the same by ninths of the image, or None
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_detect.measures.pixels import Pixels
from vlm_detect.plugins import Registry
from vlm_detect.records import ReasonKind

Grid = NDArray[np.float64]  # (3, 3), by rows
_DIGITS = 6  # decimals: equal images give equal values on every machine


@dataclass(frozen=True)
class Words:
    """The wordings of a measure: "{subject} {lower or higher} than in most photos".

    Subjects begin in lower case and are singular. The parser accepts these phrases. What `also_lower` and `also_higher`
    match (regular expressions of complete words) it reads as statements of their own: "lacks fine detail".
    """

    subjects: tuple[str, ...]
    lower: tuple[str, ...]
    higher: tuple[str, ...]
    also_lower: tuple[str, ...] = ()
    also_higher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """`value` gives the number, `map` the same by ninths; an image with a side below `min_side` has neither."""

    name: str
    kind: ReasonKind
    words: Words
    value: Callable[[Pixels], float]
    map: Callable[[Pixels], Grid] | None = None
    min_side: int = 16

    def __call__(self, image: NDArray[Any] | Pixels) -> float:
        """The measure of an image (H, W, 3), rounded; ValueError where the image is too small."""
        pixels = image if isinstance(image, Pixels) else Pixels.from_array(image)
        if not self.fits(pixels):
            raise ValueError(f"{self.name} takes sides of {self.min_side} pixels or more, not {pixels.size}")
        return round(float(self.value(pixels)), _DIGITS)

    def fits(self, pixels: Pixels) -> bool:
        return min(pixels.size) >= self.min_side


_OURS = ("frequency", "noise", "edges", "texture", "colour", "compression")
MEASURES: Registry[Measure] = Registry("measure", [f"vlm_detect.measures.{name}" for name in _OURS])


def measure(
    name: str,
    kind: ReasonKind,
    words: Words,
    *,
    map: Callable[[Pixels], Grid] | None = None,
    min_side: int = 16,
) -> Callable[[Callable[[Pixels], float]], Callable[[Pixels], float]]:
    """Register the decorated function as the measure `name`, which is also a column of files: a_z, 0_9 and _."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"measure {name!r}: give a name of lower case letters, digits and underscores")

    def register(value: Callable[[Pixels], float]) -> Callable[[Pixels], float]:
        MEASURES.add(name, Measure(name, kind, words, value, map, min_side), value)
        return value

    return register


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of one image, and the facts for comparing them: `size` (width, height), the file's JPEG quality.

    `jpeg_quality` is None if the file is no JPEG, or unknown. Grids are computed on demand unless they are in `grids`.
    """

    values: Mapping[str, float]
    size: tuple[int, int]
    jpeg_quality: int | None = None
    pixels: Pixels | None = None
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def grid(self, name: str) -> Grid | None:
        """(3, 3): a measure by ninths of the image; None if the measure has no grid, or there are no pixels."""
        if name in self.grids:
            return self.grids[name]
        one = MEASURES[name]
        return one.map(self.pixels) if one.map and self.pixels and one.fits(self.pixels) else None

    def without_pixels(self) -> Measured:
        """The same values and grids in a few kilobytes, for keeping many images in memory."""
        grids = {name: grid for name in MEASURES if (grid := self.grid(name)) is not None}
        return replace(self, pixels=None, grids=grids)


def measure_image(image: NDArray[Any] | Pixels, jpeg_quality: int | None = None) -> Measured:
    """Every measure that an image (H, W, 3) is large enough for."""
    pixels = image if isinstance(image, Pixels) else Pixels.from_array(image)
    values = {name: one(pixels) for name, one in MEASURES.items() if one.fits(pixels)}
    return Measured(values, pixels.size, jpeg_quality, pixels)
