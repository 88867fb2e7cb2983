"""Local edits with a known operation and place, and no change outside of it.

    edited = random_edit(photo, seed=7, donor=another)       # .image, .operation, .box (x0, y0, x1, y1), .strength
    edited = random_edit(photo, seed=7, operations=("blur",))

An edit is within a box, under a soft mask that is zero along the box's border, so there is no visible seam and no pixel
outside changes. The seed determines operation, one of nine places, size and settings. An edit that is too weak to be
visible, or so strong that the box looks like a foreign patch, is sampled again with the next number of the same seed:
the first within the bounds is used, never the best of several.

Photos keep the traces of their compression: the edit is applied to decoded pixels before the common encoder. The
operations are in `images/edit_operations.py`; `inpaint` needs a diffusion pipeline (`renderer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlm_detect.images.decode import ImageRejected
from vlm_detect.images.edits import EDITS, Box, Paint, Place, Scene

# Mean absolute change within the box, of the full range: invisible below, a foreign patch above.
MIN_STRENGTH, MAX_STRENGTH = 0.018, 0.35
SIDES = (0.25, 0.45)  # of the image's sides
MIN_SIDE = 16  # pixels; under the soft mask a smaller box has too few to distinguish a blur from a smear
_ATTEMPTS = 20
ATTEMPTS_PER_OPERATION = _ATTEMPTS // 2  # two of the operations are tried


@dataclass(frozen=True)
class Edited:
    """An edited image; `strength` is the mean absolute change within the box, of the full range.

    `attempt` is the number of the sample: with the seed and the operation it reproduces the edit (`edit_once`).
    """

    image: Image.Image
    operation: str
    box: Box
    strength: float
    attempt: int


def random_edit(
    image: Image.Image,
    seed: int,
    *,
    operations: Sequence[str] | None = None,
    donor: Image.Image | None = None,
    paint: Paint | None = None,
) -> Edited:
    """One edit of an RGB image, with all choices sampled from `seed`.

    Args:
        operations: to sample from, by default all built-in ones; those that need a `donor` (another photo) or `paint`
        are skipped without it. paint: returns the image at the same size.

    Raises:
        ImageRejected: `too_small` for a box, or `edit_invisible` if no sample is within the bounds of strength.
    """
    if min(image.size) < 2 * MIN_SIDE:
        raise ImageRejected("too_small", f"{image.width}x{image.height} pixels, an edit needs {2 * MIN_SIDE} per side")
    operations = EDITS.own if operations is None else operations
    edits = [EDITS[name] for name in operations]
    possible = [one.name for one in edits if (donor or not one.needs_donor) and (paint or not one.needs_paint)]
    if not possible:
        raise ImageRejected("no_operation", f"{', '.join(operations)} need another photo or a pipeline")
    first = np.random.default_rng(seed).integers(len(possible))
    for attempt in range(_ATTEMPTS):
        # The operation is kept as long as possible; a plain sky shows no blur at any place.
        operation = possible[(first + attempt // ATTEMPTS_PER_OPERATION) % len(possible)]
        edited = edit_once(image, seed, attempt, operation, donor=donor, paint=paint)
        if MIN_STRENGTH <= edited.strength <= MAX_STRENGTH:
            return edited
    raise ImageRejected(
        "edit_invisible", f"none of {_ATTEMPTS} samples changes a box by {MIN_STRENGTH} to {MAX_STRENGTH}"
    )


def edit_once(
    image: Image.Image,
    seed: int,
    attempt: int,
    operation: str,
    *,
    donor: Image.Image | None = None,
    paint: Paint | None = None,
) -> Edited:
    """One sample of `random_edit`, of any strength; a splice needs `donor`, inpainting `paint`."""
    rng = np.random.default_rng([seed, attempt])
    place = random_place(image.size, rng)
    edited = place.put(image, EDITS[operation].make(Scene(image, place, rng, donor, paint)))
    return Edited(edited, operation, place.box, strength_of(image, edited, place.box), attempt)


def strength_of(before: Image.Image, after: Image.Image, box: Box) -> float:
    """Mean absolute change within the box, of the full range."""
    a, b = (np.asarray(image.crop(box), dtype=float) for image in (before, after))
    return float(np.abs(a - b).mean() / 255)


def random_place(size: tuple[int, int], rng: np.random.Generator) -> Place:
    """A box in one of nine equally likely places of an image of `size` (width, height), and its soft mask."""
    spans = []
    for length in size:
        side = max(MIN_SIDE, round(length * rng.uniform(*SIDES)))
        third = rng.integers(3)
        centre = length * rng.uniform(third, third + 1) / 3
        # moved inwards if the box would stick out; its centre stays in its third, because no side is over two thirds
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
