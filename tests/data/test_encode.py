"""Both members of a pair leave the same way, and the twin goes the photo's way before."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.factories import photo
from vlm_detect.data.decode import decode_image, standard_encoding
from vlm_detect.data.encode import EncodeConfig, crop_to_aspect, encode_image, fit, is_blank, like_source, recompress


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (40, 100)])
@pytest.mark.parametrize("target", [(32, 32), (64, 32), (16, 48)])
def test_crop_keeps_scale_and_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    cropped = crop_to_aspect(photo(0, size), target)
    assert cropped.width == size[0] or cropped.height == size[1]
    assert cropped.width / cropped.height == pytest.approx(target[0] / target[1], rel=0.05)
    assert fit(photo(0, size), target).size == target


def test_a_twin_of_a_jpeg_carries_the_jpegs_own_tables() -> None:
    buffer = io.BytesIO()
    photo(1, (64, 64)).save(buffer, "JPEG", quality=30, subsampling=2)
    source = decode_image(buffer.getvalue())
    assert source.jpeg is not None
    twin = like_source(photo(2, (32, 32)), (64, 64), source.jpeg)
    assert twin.size == (64, 64)
    # pixels that went through these tables once go through them again nearly unchanged
    again = recompress(twin, source.jpeg)
    first = np.abs(np.asarray(recompress(photo(2, (64, 64)), source.jpeg), int) - np.asarray(photo(2, (64, 64)), int))
    second = np.abs(np.asarray(again, int) - np.asarray(twin, int))
    assert second.mean() < 0.35 * first.mean()


def test_a_twin_of_a_png_is_left_alone() -> None:
    twin = photo(2, (32, 32))
    assert like_source(twin, (64, 64), None) is twin


def test_grey_jpegs_have_one_table() -> None:
    buffer = io.BytesIO()
    photo(1).convert("L").save(buffer, "JPEG", quality=60)
    source = decode_image(buffer.getvalue())
    assert source.jpeg is not None
    assert len(np.unique(np.ptp(np.asarray(recompress(photo(2), source.jpeg), int), axis=2))) == 1  # grey as well


@pytest.mark.parametrize("config", [EncodeConfig(), EncodeConfig(encode="png"), EncodeConfig(quality=50)])
def test_one_encoder_without_metadata(config: EncodeConfig) -> None:
    image = photo(1)
    image.info |= {"comment": b"made by", "exif": b"Exif\0\0", "icc_profile": b"x" * 200, "dpi": (72, 72)}
    for data in (encode_image(image, config), encode_image(photo(2), config)):
        opened = Image.open(io.BytesIO(data))
        assert not {"exif", "icc_profile", "comment", "dpi", "xmp"} & {
            key for key in opened.info if opened.info[key] is not None
        }
    if config.encode == "jpeg":
        jpeg = decode_image(data).jpeg
        assert jpeg is not None
        assert (jpeg.quality, jpeg.subsampling) == (config.quality, 0)
        assert jpeg.tables == standard_encoding(config.quality).tables


def test_blank() -> None:
    assert is_blank(Image.new("RGB", (32, 32), (10, 20, 30)))
    assert not is_blank(photo(0))
