r"""The registry of local edits: each replaces the pixels of a place and has a wording.

    @edit("posterise", words=r"posteri[sz]\w*|banded", done=("was posterised", "was banded"))
    def posterise(scene: Scene) -> np.ndarray:
        return (scene.patch // 64) * 64

    EDITS["blur"].make(scene)          # new content of the box of `scene.place`, (height, width, 3)

`generate/edits.py` samples the place and applies the edit; `edit_operations.py` has the built-in ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.plugins import Registry

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive


@dataclass(frozen=True)
class Place:
    """The place of an edit: its box, and the blending weight of each of the box's pixels, (height, width) from 0 to
    1."""

    box: Box
    mask: np.ndarray

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """The box's part of an image (H, W, 3)."""
        x0, y0, x1, y1 = self.box
        return pixels[y0:y1, x0:x1]

    def covered(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) of an image of `size` (width, height): 255 where the edit changes pixels, else 0."""
        covered = np.zeros((size[1], size[0], 1), np.uint8)
        self.cut(covered)[..., 0] = 255 * (self.mask > 0)
        return covered[..., 0]

    def put(self, image: Image.Image, patch: np.ndarray) -> Image.Image:
        """`image` with `patch` (height, width, 3; 0 to 255) under the mask; other pixels are unchanged."""
        pixels = np.asarray(image).copy()
        mixed = self.cut(pixels) * (1 - self.mask[..., None]) + patch * self.mask[..., None]
        self.cut(pixels)[:] = mixed.round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels)


Paint = Callable[[Image.Image, Place, int], Image.Image]  # the image with that place repainted, from a seed


@dataclass(frozen=True)
class Scene:
    """The input of an edit. All randomness comes from `rng`."""

    image: Image.Image  # RGB
    place: Place
    rng: np.random.Generator
    donor: Image.Image | None = None  # another photo, for edits that need one
    paint: Paint | None = None  # a generator, for edits that need one

    @cached_property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) of floats from 0 to 255."""
        return np.asarray(self.image, dtype=float)

    @property
    def patch(self) -> np.ndarray:
        """The box's part of it, (height, width, 3)."""
        return self.place.cut(self.pixels)


Make = Callable[[Scene], np.ndarray]


@dataclass(frozen=True)
class Edit:
    """An edit operation.

    Args:
        name: as in datasets, with "_" between words. function: returns the pixels for the box, (height, width, 3) from
        0 to 255; they are blended under the soft mask. words: a regular expression of its mention in a free answer; it
        must not overlap with those of other edits. done: wordings for reasons, which match `words`: "was blurred".
        needs_donor: it copies from another photo. needs_paint: it needs a generator that can inpaint.
    """

    name: str
    function: Make
    words: str
    done: tuple[str, ...]
    needs_donor: bool = False
    needs_paint: bool = False

    @property
    def spoken(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    def make(self, scene: Scene) -> np.ndarray:
        """The pixels for the box; raises UserError if the function returns another shape."""
        patch = np.asarray(self.function(scene), dtype=float)
        if patch.shape != scene.patch.shape:
            raise UserError(
                f"edit {self.name!r} returns pixels of shape {patch.shape} for a box of {scene.patch.shape}"
            )
        return patch


EDITS: Registry[Edit] = Registry("edit", ["vlm_detect.images.edit_operations"])


def edit(
    name: str, *, words: str, done: tuple[str, ...], needs_donor: bool = False, needs_paint: bool = False
) -> Callable[[Make], Make]:
    """Register a function as an edit; the arguments are those of `Edit`."""
    if unread := [phrase for phrase in done if not re.search(rf"\b(?:{words})\b", phrase)]:
        raise UserError(f"edit {name!r}: its words do not match its wording {unread[0]!r}")

    def register(function: Make) -> Make:
        EDITS.add(name, Edit(name, function, words, done, needs_donor, needs_paint), function)
        return function

    return register
