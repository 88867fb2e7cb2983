"""Captions describe content only."""

from __future__ import annotations

import pytest

from vlm_detect.generate.captions import clean_caption


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a frog", "a frog"),
        ("a photo of a truck", "a truck"),
        ("A close-up photo of a cat, with a shallow depth of field.", "A cat."),
        ("The image shows a man holding a camera. The image is blurry.", "A man holding a camera."),
        ("The image depicts a painting of a horse, black and white.", "A painting of a horse."),
        ("This is a picture of two dogs, high quality, 4k", "Two dogs"),
        ("A blurry dog in the image looking at the camera.", "A dog."),
        ("The scene is set in a kitchen.", "The scene is set in a kitchen."),
        ("A woman smiling at the camera.", "A woman smiling."),
        ("A red car. A tree stands behind it.", "A red car. A tree stands behind it."),
        ("The photo is of high quality.", ""),
        ("A truck. Most of the picture is black.", "A truck. Most of the picture is black."),
        ("A blurry photo.", ""),
        ("   ", ""),
    ],
)
def test_clean_caption(said: str, kept: str) -> None:
    assert clean_caption(said) == kept
    assert clean_caption(kept) == kept
