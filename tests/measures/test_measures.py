"""Every measure on images whose answer is known; its map where something was planted; and what no image may break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.measures.factories import jpeg, natural, noisy, resized
from vlm_detect.errors import UserError
from vlm_detect.measures.pixels import Pixels, ninths, patches
from vlm_detect.measures.registry import MEASURES, Words, measure, measure_image
from vlm_detect.places import PLACES

LANCZOS = Image.Resampling.LANCZOS
KINDS = {"fine_detail", "noise", "spectrum", "edges", "texture", "colour", "repetition", "compression"}


def blurred(image, sigma=1.5):
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def enlarged(image):
    """Half as large and back: what an upsampling generator lacks."""
    half = resized(image, len(image) // 2, LANCZOS)
    return resized(half, len(image), Image.Resampling.BICUBIC)


def half_of(changed, image):
    """The left half changed, the right as it was."""
    mixed = image.copy()
    mixed[:, : image.shape[1] // 2] = changed[:, : image.shape[1] // 2]
    return mixed


def upsampled_by_zeros(image):
    """Every other pixel, the rest filled from its neighbours too weakly: a transposed convolution's checkerboard."""
    out = image.copy()
    out[1::2] *= 0.9
    out[:, 1::2] *= 0.9
    return out


def pixel_doubled(image):
    return np.kron(image[: len(image) // 4, : len(image) // 4], np.ones((4, 4, 1)))


def mosaicked(image):
    """Green known on every other pixel, as under a Bayer filter, and interpolated from its neighbours."""
    rows, columns = np.indices(image.shape[:2])
    known = (rows + columns) % 2 == 0
    out = image.copy()
    neighbours = ndimage.convolve(image[..., 1], np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4, mode="mirror")
    out[..., 1] = np.where(known, image[..., 1], neighbours)
    return out


def low_passed(image):
    """All frequencies above 0.3 cut off at once, which rings next to every edge."""
    radius = np.hypot(np.fft.fftfreq(len(image))[:, None], np.fft.fftfreq(len(image))[None])
    planes = [np.fft.ifft2(np.fft.fft2(image[..., c]) * (radius < 0.3)).real for c in range(3)]
    return np.clip(np.stack(planes, axis=2), 0, 1)


def discs(side=96):
    rows, columns = np.indices((side, side))
    inside = ((rows % 48 - 24) ** 2 + (columns % 48 - 24) ** 2) < 150
    return np.repeat(np.where(inside, 0.8, 0.2)[..., None], 3, axis=2)


def greyer(image):
    return image.mean(axis=2, keepdims=True) + 0.3 * (image - image.mean(axis=2, keepdims=True))


def darker(image):
    return np.clip(image - 0.4, 0, 1)


def lighter(image):
    return np.clip(image + 0.4, 0, 1)


def soft_chroma(image):
    luma = image @ np.array([0.299, 0.587, 0.114])
    return np.clip(luma[..., None] + blurred(image - luma[..., None], 2), 0, 1)


def tiled(image):
    return np.tile(image[:16, :16], (len(image) // 16, len(image) // 16, 1))


def compressed(image):
    return jpeg(image, 10)


PHOTO = natural(0)
GRAINY = noisy(PHOTO, 0.02)
# measure: an image and another whose number has to be higher
HIGHER = [
    ("fine_detail", enlarged(GRAINY), GRAINY),
    ("fine_detail", PHOTO, GRAINY),
    ("finest_detail", enlarged(GRAINY), GRAINY),
    ("finest_detail", blurred(GRAINY), GRAINY),
    ("spectral_slope", GRAINY, blurred(GRAINY)),
    ("spectral_slope", natural(1, exponent=1.5), natural(1, exponent=2.5)),
    ("spectral_peaks", GRAINY, pixel_doubled(GRAINY)),
    ("spectral_peaks", GRAINY, np.clip(GRAINY + 0.05 * np.cos(np.arange(96) * 1.7)[:, None, None], 0, 1)),
    ("pixel_grid", GRAINY, upsampled_by_zeros(GRAINY)),
    ("colour_filter", GRAINY, mosaicked(GRAINY)),
    (
        "colour_filter",
        resized(mosaicked(noisy(natural(2, 192), 0.02)), 96, LANCZOS),
        mosaicked(GRAINY),
    ),
    ("noise_strength", PHOTO, GRAINY),
    ("noise_evenness", half_of(noisy(PHOTO, 0.1), GRAINY), noisy(PHOTO, 0.1)),
    ("sharpness", blurred(PHOTO), PHOTO),
    ("sharpness_evenness", half_of(blurred(GRAINY, 4), GRAINY), GRAINY),
    ("ringing", noisy(blurred(discs()), 0.004), noisy(low_passed(discs()), 0.004)),
    ("ringing", noisy(discs(), 0.004), jpeg(noisy(discs(), 0.004), 40)),
    ("texture_variety", discs(), GRAINY),
    ("self_similarity", GRAINY, tiled(GRAINY)),
    ("saturation", greyer(PHOTO), PHOTO),
    ("dark_clipping", PHOTO, darker(PHOTO)),
    ("light_clipping", PHOTO, lighter(PHOTO)),
    ("colour_detail", soft_chroma(noisy(PHOTO, 0.02)), PHOTO),
    ("blockiness", PHOTO, compressed(PHOTO)),
]


@pytest.mark.parametrize(("name", "less", "more"), HIGHER, ids=[f"{i}-{case[0]}" for i, case in enumerate(HIGHER)])
def test_effects_that_raise_a_measure(name, less, more):
    assert MEASURES[name](more) > MEASURES[name](less) + 1e-3


def test_every_measure_and_kind_is_tested():
    assert {name for name, *_ in HIGHER} == set(MEASURES)
    assert {one.kind for one in MEASURES.values()} == KINDS


def test_numbers_that_are_known_exactly():
    flat = np.full((64, 64, 3), 0.5)
    noise = MEASURES["noise_strength"](noisy(flat, 0.05))
    assert np.exp(noise) == pytest.approx(0.05, abs=0.005)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert MEASURES["saturation"](red) == 1.0
    assert MEASURES["saturation"](flat) == 0.0
    quarter = np.full((32, 32, 3), 128, np.uint8)
    quarter[:16, :16, 2], quarter[16:, :16, 0] = 2, 253
    assert MEASURES["dark_clipping"](quarter) == MEASURES["light_clipping"](quarter) == 0.25
    quarter[:16, :16, 2], quarter[16:, :16, 0] = 3, 252
    assert MEASURES["dark_clipping"](quarter) == MEASURES["light_clipping"](quarter) == 0.0
    for exponent in (1.0, 2.0, 3.0):
        slopes = [MEASURES["spectral_slope"](natural(seed, 128, exponent)) for seed in range(4)]
        assert np.mean(slopes) == pytest.approx(exponent, abs=0.35)


PLANTED = {
    "fine_detail": lambda patch: noisy(patch, 0.1),
    "finest_detail": lambda patch: noisy(patch, 0.1),
    "noise_strength": lambda patch: noisy(patch, 0.1),
    "sharpness": lambda patch: noisy(patch, 0.1),
    "saturation": lambda patch: patch * np.array([1, 0.1, 0.1]),
    "dark_clipping": lambda patch: patch * 0,
    "light_clipping": lambda patch: patch * 0 + 1,
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("place", range(9))
def test_a_map_peaks_at_the_planted_effect(name, place):
    image = blurred(natural(3))
    row, column = divmod(place, 3)
    part = (slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32))
    image[part] = PLANTED[name](image[part])
    grid = measure_image(image).grid(name)
    assert grid.shape == (3, 3)
    assert PLACES[int(grid.argmax())] == PLACES[place]


def test_every_map_is_tested():
    assert {name for name, one in MEASURES.items() if one.map} == set(PLANTED)
    assert measure_image(PHOTO).grid("noise_evenness") is None


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (32, 32), (33, 31), (64, 65), (300, 600)])
@pytest.mark.parametrize("filling", ["black", "white", "grey", "ramp", "noise", "stripes"])
def test_no_image_breaks_a_measure(shape, filling):
    height, width = shape
    image: Any = np.zeros((height, width, 3), np.uint8)
    if filling == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    elif filling == "ramp":
        image[:] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    elif filling == "stripes":
        image[::2] = 255
    else:
        image[:] = {"black": 0, "white": 255, "grey": 128}[filling]
    measured = measure_image(image)
    assert set(measured.values) == {name for name, one in MEASURES.items() if min(shape) >= one.min_side}
    assert np.isfinite(list(measured.values.values())).all()
    for name in measured.values:
        grid = measured.grid(name)
        assert grid is None or np.isfinite(grid).all()


def test_all_depths_of_the_same_image_measure_the_same():
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    first = measure_image(image).values
    assert measure_image(image.astype(np.float64) / 255).values == pytest.approx(first, abs=1e-4)
    assert measure_image(image.astype(np.uint16) * 257).values == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.int64),
        np.full((32, 32, 3), 128.0),
        np.full((32, 32, 3), np.nan),
    ],
)
def test_arrays_that_are_not_images(image):
    with pytest.raises(ValueError, match=r"give|outside"):
        measure_image(image)


def test_a_too_small_image_has_no_value():
    small = np.zeros((32, 15, 3), np.uint8)
    assert measure_image(small).values == {}
    with pytest.raises(ValueError, match="16 pixels or more"):
        MEASURES["saturation"](small)


def test_a_name_is_registered_once():
    words = Words(("its width",), ("is smaller",), ("is larger",))
    for name in ("Not a name", "", "a-b"):
        with pytest.raises(ValueError, match="give a name"):
            measure(name, "colour", words)
    with pytest.raises(UserError, match="has that name; take another"):
        measure("saturation", "colour", words)(lambda pixels: 0.0)


def test_ninths_and_patches_of_any_shape():
    field = np.arange(35, dtype=float).reshape(5, 7)
    rows, columns = (slice(0, 1), slice(1, 3), slice(3, 5)), (slice(0, 2), slice(2, 4), slice(4, 7))
    expected = [[field[row, column].mean() for column in columns] for row in rows]
    np.testing.assert_allclose(ninths(field), expected)
    assert patches(np.zeros((32, 32))).shape == (8, 8, 16)
    assert patches(np.zeros((100, 250))).shape == (8, 20, 144)
    assert Pixels.from_array(np.zeros((20, 30, 3), np.uint8)).size == (30, 20)
