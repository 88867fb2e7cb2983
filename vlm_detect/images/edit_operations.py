"""The built-in local edits: their effect on the pixels of a box, and their wording."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from vlm_detect.images.edits import Place, Scene, edit


@edit("blur", words=r"blur\w*|smoothed", done=("was blurred", "has been blurred", "is blurred"))
def blur(scene: Scene) -> np.ndarray:
    sigma = _side(scene.place) * scene.rng.uniform(0.08, 0.2)
    window, inside = _window(scene, round(3 * sigma))
    return inside(ndimage.gaussian_filter(window, (sigma, sigma, 0)))


@edit(
    "copy_move",
    words=r"cop(?:y|ied)(?:[ -]move)?|clon(?:e|ed|ing)|duplicat\w+",
    done=("was copied from elsewhere in it", "was cloned from another spot", "is a copy of another spot"),
)
def copy_move(scene: Scene) -> np.ndarray:
    """A part of the same image, from at least half a box away."""
    x0, y0, x1, y1 = scene.place.box
    x, y = _elsewhere(scene)
    return scene.pixels[y : y + y1 - y0, x : x + x1 - x0]


@edit(
    "splice",
    words=r"splic\w+|pasted|composit\w+|inserted",
    done=("was pasted in from another photo", "was spliced in from another photo", "was inserted from elsewhere"),
    needs_donor=True,
)
def splice(scene: Scene) -> np.ndarray:
    """A part of another photo, upscaled if it is smaller than the box."""
    assert scene.donor is not None
    donor = scene.donor
    height, width = scene.place.mask.shape
    scale = max(1.0, width / donor.width, height / donor.height)
    if scale > 1:
        size = (int(np.ceil(donor.width * scale)), int(np.ceil(donor.height * scale)))
        donor = donor.resize(size, Image.Resampling.LANCZOS)
    x, y = scene.rng.integers(donor.width - width + 1), scene.rng.integers(donor.height - height + 1)
    return np.asarray(donor.crop((x, y, x + width, y + height)), dtype=float)


@edit("smear", words=r"smear\w*|smudg\w*", done=("was smeared", "has been smeared", "was smudged"))
def smear(scene: Scene) -> np.ndarray:
    """Dragged along one direction, as by a finger."""
    length, angle = _side(scene.place) * scene.rng.uniform(0.4, 0.8), scene.rng.uniform(0, 2 * np.pi)
    window, inside = _window(scene, round(length) + 1)
    steps = max(4, round(length))
    shifted = [
        ndimage.shift(window, (t * np.sin(angle), t * np.cos(angle), 0), order=1, mode="nearest")
        for t in np.linspace(0, length, min(steps, 24))
    ]
    return inside(np.mean(shifted, axis=0))


@edit("warp", words=r"warp\w*|twist\w*|swirl\w*", done=("was warped", "was twisted out of shape", "has been warped"))
def warp(scene: Scene) -> np.ndarray:
    """Rotate about the centre, more strongly near it."""
    patch = scene.patch
    height, width, _ = patch.shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    radius = np.clip(np.hypot(x / (width / 2), y / (height / 2)), 0, 1)
    angle = scene.rng.choice([-1, 1]) * scene.rng.uniform(1.5, 3.5) * (1 - radius) ** 2
    at = [
        y * np.cos(angle) + x * np.sin(angle) + (height - 1) / 2,
        x * np.cos(angle) - y * np.sin(angle) + (width - 1) / 2,
    ]
    channels = [ndimage.map_coordinates(patch[..., c], at, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1)


@edit(
    "recolour",
    words=r"recolou?r\w*|colou?r (?:was |is )?(?:changed|shifted|altered)|tinted",
    done=("was recoloured", "was tinted", "has been recoloured"),
)
def recolour(scene: Scene) -> np.ndarray:
    """Rotate hues at equal brightness, with a tint, so that greys change as well."""
    red, green, blue = np.moveaxis(scene.patch, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = 0.564 * (blue - luma), 0.713 * (red - luma)
    turn, tint = scene.rng.uniform(np.pi / 3, 5 * np.pi / 3), scene.rng.uniform(0, 2 * np.pi)
    amount = scene.rng.uniform(15, 40)
    cb, cr = (
        cb * np.cos(turn) - cr * np.sin(turn) + amount * np.cos(tint),
        cb * np.sin(turn) + cr * np.cos(turn) + amount * np.sin(tint),
    )
    return np.stack([luma + 1.402 * cr, luma - 0.344 * cb - 0.714 * cr, luma + 1.772 * cb], axis=-1)


@edit(
    "removal",
    words=r"remov\w+|eras\w+|deleted",
    done=("was removed and covered up", "was erased and covered up", "has been removed"),
)
def removal(scene: Scene) -> np.ndarray:
    """Replace the content of the box by its surroundings: the colours of its border, with the texture of another place.

    The colours solve Laplace's equation between the borders, found on a small copy of the box; being smooth, the
    solution can be upscaled. The texture is the difference of another place of the image from its own smooth colours.
    """
    height, width = scene.place.mask.shape
    x, y = _elsewhere(scene)
    other = scene.pixels[y : y + height, x : x + width]
    sigma = max(0.7, _side(scene.place) / 30)  # fine texture only: the shapes of another place would be a ghost
    return _carried_inwards(scene.patch) + other - ndimage.gaussian_filter(other, (sigma, sigma, 0))


@edit(
    "inpaint",
    words=r"inpaint\w*|painted (?:in|over|anew)|filled in|repainted",
    done=("was repainted by a generator", "was inpainted by a generator", "was painted over by a generator"),
    needs_paint=True,
)
def inpaint(scene: Scene) -> np.ndarray:
    assert scene.paint is not None
    painted = scene.paint(scene.image, scene.place, int(scene.rng.integers(2**63)))
    return scene.place.cut(np.asarray(painted, dtype=float))


def _side(place: Place) -> int:
    return min(place.mask.shape)


def _window(scene: Scene, margin: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The box with up to `margin` pixels around it, for filters with larger support, and the slices to get the box
    back."""
    x0, y0, x1, y1 = scene.place.box
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    window = scene.pixels[top : y1 + margin, left : x1 + margin]
    return window, lambda filtered: filtered[y0 - top : y1 - top, x0 - left : x1 - left]


def _elsewhere(scene: Scene) -> tuple[int, int]:
    """(x, y) of another box of the same size in the image, at least half a side away; a box is smaller than half the
    image."""
    (height, width), pixels, rng = scene.place.mask.shape, scene.pixels, scene.rng
    while True:
        x, y = rng.integers(pixels.shape[1] - width + 1), rng.integers(pixels.shape[0] - height + 1)
        if abs(x - scene.place.box[0]) >= width / 2 or abs(y - scene.place.box[1]) >= height / 2:
            return int(x), int(y)


def _carried_inwards(patch: np.ndarray, side: int = 24, rounds: int = 400) -> np.ndarray:
    """The patch's inner pixels replaced by the harmonic function of its border."""
    height, width, _ = patch.shape
    small_size = (min(side, width), min(side, height))
    small = np.asarray(Image.fromarray(patch.astype(np.uint8)).resize(small_size, Image.Resampling.BOX), dtype=float)
    small[1:-1, 1:-1] = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]).mean(axis=0)
    for _ in range(rounds):  # Jacobi; 24 pixels per side converge long before
        small[1:-1, 1:-1] = (small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:]) / 4
    channels = [
        np.asarray(Image.fromarray(small[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(float)
