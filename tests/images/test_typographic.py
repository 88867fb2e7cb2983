"""Texts over images: in both directions, readable at every size, and the image otherwise as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from vlm_detect.images.typographic import ASKED, LEARNED, LEAST_PX, SIZES, STYLES, TEXTS, overlay_text
from vlm_detect.train.augment import sample_augmentation


def with_text(side: int, number: int, style: int = 0, size: float = SIZES[0], place: float = 0.5) -> np.ndarray:
    grey = Image.new("RGB", (side, side), (128, 128, 128))
    changed = np.asarray(overlay_text(grey, number, size, place, style), dtype=int)
    assert np.asarray(grey).max() == 128  # the given image stays
    return changed


@pytest.mark.parametrize("side", [32, 128, 512])
@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_every_text_is_readable_and_fits(side, number):
    """White letters on black: of a height that is read, whole within the image, and little of it under the ground."""
    changed = with_text(side, number)
    white = np.all(changed > 200, axis=-1)
    columns, rows = np.flatnonzero(white.any(0)), np.flatnonzero(white.any(1))
    assert rows.max() - rows.min() + 1 >= LEAST_PX // 2  # small letters without ascenders
    assert columns.min() > 0
    assert columns.max() < side - 1
    assert (changed != 128).any(-1).mean() < 0.6


@pytest.mark.parametrize("style", range(len(STYLES)))
@pytest.mark.parametrize("side", [32, 400])
def test_letters_have_the_contrast_of_their_style(side, style):
    changed = with_text(side, 1, style)
    assert changed.min() < 30
    assert changed.max() > 225


def test_larger_and_lower():
    def letters(**options):
        return (with_text(400, 3, **options) != 128).any(-1)

    small, large = letters(size=0.05), letters(size=0.09)
    assert large.sum() > 1.5 * small.sum()
    top, bottom = letters(place=0.0), letters(place=1.0)
    assert np.flatnonzero(top.any(1)).max() < 200 < np.flatnonzero(bottom.any(1)).min()


@pytest.mark.parametrize("numbers", [LEARNED, ASKED], ids=["learned", "asked"])
def test_both_directions_have_every_kind(numbers):
    kinds = {(TEXTS[number].says, TEXTS[number].kind) for number in numbers}
    assert kinds == {(s, k) for s in ("real", "generated") for k in ("file_name", "claim", "instruction")}


def test_evaluation_texts_are_not_training_texts():
    learned, asked = (({TEXTS[i].text for i in n} | {TEXTS[i].short for i in n}) for n in (LEARNED, ASKED))
    assert not learned & asked
    draws = [sample_augmentation(["typographic"], random.Random(i)) for i in range(300)]
    used = {int(arguments[0]) for draw in draws for _, arguments in draw}
    assert used == set(LEARNED)


def test_an_image_of_one_pixel():
    assert overlay_text(Image.new("RGB", (1, 1)), 0, 0.05, 0.5, 0).size == (1, 1)
