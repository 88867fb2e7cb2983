"""Both members of a pair leave the same way, and the twin goes the photo's way before."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.factories import photo
from vlm_detect.images.decode import DecodedImage, decode_image
from vlm_detect.images.encode import crop_to_aspect, encode_image, fit, is_blank, like_source, recompress, resize
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.images.jpeg import standard_encoding


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (40, 100)])
@pytest.mark.parametrize("target", [(32, 32), (64, 32), (16, 48)])
def test_crop_keeps_scale_and_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    cropped = crop_to_aspect(photo(0, size), target)
    assert cropped.width == size[0] or cropped.height == size[1]
    assert cropped.width / cropped.height == pytest.approx(target[0] / target[1], rel=0.05)
    assert fit(photo(0, size), target).size == target


def jpeg_photo(size: tuple[int, int], quality: int) -> DecodedImage:
    buffer = io.BytesIO()
    detailed(1, size).save(buffer, "JPEG", quality=quality, subsampling=2)
    return decode_image(buffer.getvalue())


def detailed(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture with detail at every scale, as photographs have (amplitude falls with frequency)."""
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(3, size[1], size[0])), axes=(1, 2))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size[1]), np.fft.fftfreq(size[0]), indexing="ij"))
    pixels = np.fft.ifft2(noise / np.maximum(frequency, 1 / max(size)), axes=(1, 2)).real
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def detail(image: Image.Image) -> float:
    grey = np.asarray(image.convert("L"), float)
    return float(
        np.abs(4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).mean()
    )


def test_at_the_photos_own_size_a_twin_is_compressed_with_the_photos_own_tables() -> None:
    source = jpeg_photo((64, 64), quality=30)
    assert source.jpeg is not None
    twin = like_source(detailed(2, (64, 64)), (64, 64), (64, 64), source.jpeg)
    np.testing.assert_array_equal(np.asarray(twin), np.asarray(recompress(detailed(2, (64, 64)), source.jpeg)))


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("reduction", [1.5, 2, 3])
def test_a_reduced_twin_keeps_as_much_detail_as_the_photo(reduction: float, quality: int) -> None:
    size, photo_size = (64, 64), (round(64 * reduction), round(64 * reduction))
    source = jpeg_photo(photo_size, quality)
    reduced = resize(source.image, size)
    uncompressed = resize(detailed(1, photo_size), size)  # the same content, drawn instead of photographed
    twin = like_source(uncompressed, size, photo_size, source.jpeg)
    assert detail(twin) == pytest.approx(detail(reduced), rel=0.08)


def test_a_twin_of_a_png_is_only_resized() -> None:
    twin = photo(2, (32, 32))
    assert like_source(twin, (32, 32), (64, 64), None) is twin
    assert like_source(twin, (16, 16), (64, 64), None).size == (16, 16)


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
