"""The inverted and saturated view is Pillow's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from vlm_detect.models.cnn.views import saturate, show


@pytest.mark.parametrize("factor", [0.0, 0.5, 8.0, 500.0])
def test_the_batch_equals_pillow_image_by_image(factor):
    images = np.random.default_rng(0).integers(0, 256, (4, 17, 23, 3), dtype=np.uint8)
    images[1] = images[1, :, :, :1]  # an image of greys, which no factor moves
    batch = show(torch.from_numpy(images).permute(0, 3, 1, 2), "invert_saturate", factor)
    for image, got in zip(images, batch.permute(0, 2, 3, 1).numpy(), strict=True):
        plain = ImageEnhance.Color(ImageOps.invert(Image.fromarray(image))).enhance(factor)
        np.testing.assert_array_equal(got, np.asarray(plain))


def test_a_large_factor_leaves_only_the_sign_of_each_channel():
    pixels = torch.tensor([120, 121, 119], dtype=torch.uint8).view(1, 3, 1, 1)
    assert saturate(pixels, 500.0).flatten().tolist() == [120, 255, 0]


def test_the_plain_view_is_the_image():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert show(pixels, "plain", 8.0) is pixels


def test_channels_last_layout_is_kept():
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert saturate(pixels, 8.0).is_contiguous(memory_format=torch.channels_last)
