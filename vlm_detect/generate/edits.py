"""Local edits whose operation and place are known: what was done, where, and nothing outside of it.

    edited = draw_edit(photo, seed=7, donor=another)       # .image, .operation, .box (x0, y0, x1, y1), .strength
    edited = draw_edit(photo, seed=7, operations=("blur",))

An edit lies within a box, under a soft mask that is zero along the box's border, so no seam gives it away and no pixel
outside changes. The seed decides operation, one of nine places, size and settings. An edit that is too weak to
be seen, or so strong that the box is a patch of its own, is sampled again with the next number of the same seed: the
first within the bounds is taken, never the best of several.

Photos keep their own compression: the edit is put into decoded pixels before the common encoder. `inpaint` is not done
here: it takes a diffusion pipeline (`renderer.py`), which is given the same box and mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from vlm_detect.images.decode import ImageRejected
from vlm_detect.records import EDIT_OPERATIONS, EditOperation

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are outside

# Mean absolute change within the box, of the full range: below it no one sees the edit, above it is a foreign patch.
MIN_STRENGTH, MAX_STRENGTH = 0.018, 0.35
SIDES = (0.25, 0.45)  # of the image's sides
MIN_SIDE = 16  # pixels; under the soft mask a smaller box has too few left for a blur to be told from a smear
_ATTEMPTS = 20
NEEDS_DONOR = ("splice",)
NEEDS_PIPELINE = ("inpaint",)


@dataclass(frozen=True)
class Place:
    """Where an edit goes: its box, and how far each of the box's pixels is exchanged, (height, width) in 0 to 1."""

    box: Box
    mask: np.ndarray

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """The box's part of an image (H, W, 3)."""
        x0, y0, x1, y1 = self.box
        return pixels[y0:y1, x0:x1]

    def put(self, image: Image.Image, patch: np.ndarray) -> Image.Image:
        """`image` with `patch` (height, width, 3; 0 to 255) under the mask; other pixels stay as they are."""
        pixels = np.asarray(image).copy()
        mixed = self.of(pixels) * (1 - self.mask[..., None]) + patch * self.mask[..., None]
        self.of(pixels)[:] = mixed.round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels)


Paint = Callable[[Image.Image, Place, int], Image.Image]  # the image with that place repainted, from a seed


@dataclass(frozen=True)
class Edited:
    """An edited image; `strength` is the mean absolute change within the box, of the full range.

    `attempt` is the number of the draw: with the seed and the operation it makes the same edit again (`edit_once`).
    """

    image: Image.Image
    operation: EditOperation
    box: Box
    strength: float
    attempt: int


def draw_edit(
    image: Image.Image,
    seed: int,
    *,
    operations: Sequence[EditOperation] = EDIT_OPERATIONS,
    donor: Image.Image | None = None,
    paint: Paint | None = None,
) -> Edited:
    """One edit of an RGB image, all of it sampled from `seed`.

    Args:
        operations: to draw from; those that need a `donor` (another photo) or `paint` are passed over without it.
        paint: returns the image at the same size.

    Raises:
        ImageRejected: `too_small` for a box, or `edit_invisible` where no draw lies within the bounds of strength.
    """
    if min(image.size) < 2 * MIN_SIDE:
        raise ImageRejected("too_small", f"{image.width}x{image.height} pixels, an edit needs {2 * MIN_SIDE} a side")
    missing = (() if donor else NEEDS_DONOR) + (() if paint else NEEDS_PIPELINE)
    possible = [operation for operation in operations if operation not in missing]
    if not possible:
        raise ImageRejected("no_operation", f"{', '.join(operations)} need another photo or a pipeline")
    first = np.random.default_rng(seed).integers(len(possible))
    for attempt in range(_ATTEMPTS):
        # The operation is kept while it can be; a plain sky shows no blur, whatever its place.
        operation = possible[(first + attempt // (_ATTEMPTS // 2)) % len(possible)]
        edited = edit_once(image, seed, attempt, operation, donor=donor, paint=paint)
        if MIN_STRENGTH <= edited.strength <= MAX_STRENGTH:
            return edited
    raise ImageRejected(
        "edit_invisible", f"none of {_ATTEMPTS} draws changes a box by {MIN_STRENGTH} to {MAX_STRENGTH}"
    )


def edit_once(
    image: Image.Image,
    seed: int,
    attempt: int,
    operation: EditOperation,
    *,
    donor: Image.Image | None = None,
    paint: Paint | None = None,
) -> Edited:
    """One draw of `draw_edit`, however strong it is; a splice needs `donor`, inpainting `paint`."""
    rng = np.random.default_rng([seed, attempt])
    place = draw_place(image.size, rng)
    if operation == "inpaint":
        assert paint is not None
        patch = place.of(np.asarray(paint(image, place, int(rng.integers(2**63))), dtype=float))
    else:
        patch = _OPERATIONS[operation](np.asarray(image, dtype=float), place, rng, donor)
    edited = place.put(image, patch)
    return Edited(edited, operation, place.box, strength_of(image, edited, place.box), attempt)


def strength_of(before: Image.Image, after: Image.Image, box: Box) -> float:
    """Mean absolute change within the box, of the full range."""
    a, b = (np.asarray(image.crop(box), dtype=float) for image in (before, after))
    return float(np.abs(a - b).mean() / 255)


def draw_place(size: tuple[int, int], rng: np.random.Generator) -> Place:
    """A box in one of nine equally likely places of an image of `size` (width, height), and its soft mask."""
    spans = []
    for length in size:
        side = max(MIN_SIDE, round(length * rng.uniform(*SIDES)))
        third = rng.integers(3)
        centre = length * rng.uniform(third, third + 1) / 3
        # moved inwards where the box would stick out; its centre stays in its third, for no side is over two thirds
        start = int(min(max(round(centre - side / 2), 0), length - side))
        spans.append((start, start + side))
    (x0, x1), (y0, y1) = spans
    return Place((x0, y0, x1, y1), _soft_mask(x1 - x0, y1 - y0, rng))


def _soft_mask(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width): 1 within a rounded shape between ellipse and rectangle, falling to 0 at the border."""
    x = np.abs(np.linspace(-1, 1, width))[None, :]
    y = np.abs(np.linspace(-1, 1, height))[:, None]
    power = rng.uniform(2, 6)  # 2 is an ellipse
    radius = (x**power + y**power) ** (1 / power)
    edge = max(0.25, 4 / min(width, height))
    return np.clip((1 - radius) / edge, 0, 1)


def _blur(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    sigma = _side(place) * rng.uniform(0.08, 0.2)
    window, inside = _window(pixels, place.box, round(3 * sigma))
    return inside(ndimage.gaussian_filter(window, (sigma, sigma, 0)))


def _smear(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """Drawn along one direction, as by a finger."""
    length, angle = _side(place) * rng.uniform(0.4, 0.8), rng.uniform(0, 2 * np.pi)
    window, inside = _window(pixels, place.box, round(length) + 1)
    steps = max(4, round(length))
    drawn = [
        ndimage.shift(window, (t * np.sin(angle), t * np.cos(angle), 0), order=1, mode="nearest")
        for t in np.linspace(0, length, min(steps, 24))
    ]
    return inside(np.mean(drawn, axis=0))


def _warp(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """Turned about the middle, the more the nearer to it."""
    patch = place.of(pixels)
    height, width, _ = patch.shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    radius = np.clip(np.hypot(x / (width / 2), y / (height / 2)), 0, 1)
    angle = rng.choice([-1, 1]) * rng.uniform(1.5, 3.5) * (1 - radius) ** 2
    at = [
        y * np.cos(angle) + x * np.sin(angle) + (height - 1) / 2,
        x * np.cos(angle) - y * np.sin(angle) + (width - 1) / 2,
    ]
    channels = [ndimage.map_coordinates(patch[..., c], at, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1)


def _recolour(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """Colours turned round the wheel at equal brightness, with a tint, so that greys change as well."""
    red, green, blue = np.moveaxis(place.of(pixels), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = 0.564 * (blue - luma), 0.713 * (red - luma)
    turn, tint = rng.uniform(np.pi / 3, 5 * np.pi / 3), rng.uniform(0, 2 * np.pi)
    amount = rng.uniform(15, 40)
    cb, cr = (
        cb * np.cos(turn) - cr * np.sin(turn) + amount * np.cos(tint),
        cb * np.sin(turn) + cr * np.cos(turn) + amount * np.sin(tint),
    )
    return np.stack([luma + 1.402 * cr, luma - 0.344 * cb - 0.714 * cr, luma + 1.772 * cb], axis=-1)


def _copy_move(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """A part of the same image, from at least half a box away."""
    x0, y0, x1, y1 = place.box
    x, y = _elsewhere(pixels, place, rng)
    return pixels[y : y + y1 - y0, x : x + x1 - x0]


def _splice(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """A part of another photo, which is enlarged where it is smaller than the box."""
    assert donor is not None
    height, width = place.mask.shape
    scale = max(1.0, width / donor.width, height / donor.height)
    if scale > 1:
        size = (int(np.ceil(donor.width * scale)), int(np.ceil(donor.height * scale)))
        donor = donor.resize(size, Image.Resampling.LANCZOS)
    x, y = rng.integers(donor.width - width + 1), rng.integers(donor.height - height + 1)
    return np.asarray(donor.crop((x, y, x + width, y + height)), dtype=float)


def _removal(pixels: np.ndarray, place: Place, rng: np.random.Generator, donor: Image.Image | None) -> np.ndarray:
    """What the box shows gives way to its surroundings: the border's colours carried inwards, with adjacent texture.

    The colours solve Laplace's equation between the borders, found on a small copy of the box; being smooth, it can be
    enlarged. The texture is what another place of the image has besides its own such colours.
    """
    height, width = place.mask.shape
    x, y = _elsewhere(pixels, place, rng)
    other = pixels[y : y + height, x : x + width]
    sigma = max(0.7, _side(place) / 30)  # fine texture only: the shapes of another place would be a ghost
    return _carried_inwards(place.of(pixels)) + other - ndimage.gaussian_filter(other, (sigma, sigma, 0))


_OPERATIONS: dict[EditOperation, Callable[..., np.ndarray]] = {
    "blur": _blur,
    "copy_move": _copy_move,
    "splice": _splice,
    "smear": _smear,
    "warp": _warp,
    "recolour": _recolour,
    "removal": _removal,
}


def _side(place: Place) -> int:
    return min(place.mask.shape)


def _window(pixels: np.ndarray, box: Box, margin: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The box with up to `margin` pixels around it, for filters that look further; and how to get the box back."""
    x0, y0, x1, y1 = box
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    window = pixels[top : y1 + margin, left : x1 + margin]
    return window, lambda filtered: filtered[y0 - top : y1 - top, x0 - left : x1 - left]


def _elsewhere(pixels: np.ndarray, place: Place, rng: np.random.Generator) -> tuple[int, int]:
    """(x, y) of another box of the same size in the image, at least half a side away; a box is less than half of it."""
    height, width = place.mask.shape
    while True:
        x, y = rng.integers(pixels.shape[1] - width + 1), rng.integers(pixels.shape[0] - height + 1)
        if abs(x - place.box[0]) >= width / 2 or abs(y - place.box[1]) >= height / 2:
            return int(x), int(y)


def _carried_inwards(patch: np.ndarray, side: int = 24, rounds: int = 400) -> np.ndarray:
    """The patch's inner pixels replaced by the harmonic function of its border."""
    height, width, _ = patch.shape
    small_size = (min(side, width), min(side, height))
    small = np.asarray(Image.fromarray(patch.astype(np.uint8)).resize(small_size, Image.Resampling.BOX), dtype=float)
    small[1:-1, 1:-1] = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]).mean(axis=0)
    for _ in range(rounds):  # Jacobi; 24 pixels a side settle long before
        small[1:-1, 1:-1] = (small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:]) / 4
    channels = [
        np.asarray(Image.fromarray(small[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(float)
