"""Images of the wild: decoded right, or rejected with a reason; never a crash, never a silently wrong colour."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.data.factories import photo
from vlm_detect.images.decode import ImageRejected, decode_image, estimate_quality, standard_encoding


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def reason(data: bytes | Path) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode_image(data)
    return caught.value.reason


def pixel(data: bytes) -> tuple[int, ...]:
    decoded = decode_image(data).image
    assert decoded.mode == "RGB"
    value = decoded.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG2000"])
def test_plain_formats(file_format: str) -> None:
    options = {"irreversible": False} if file_format == "JPEG2000" else {}
    decoded = decode_image(saved(Image.new("RGB", (20, 10), (200, 40, 90)), file_format, **options))
    assert (decoded.format, decoded.width, decoded.height) == (file_format, 20, 10)
    assert decoded.image.getpixel((3, 3)) == (200, 40, 90)
    assert decoded.jpeg is None


def test_the_extension_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(saved(photo(1), "PNG"))
    assert decode_image(path).format == "PNG"


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_read_from_the_tables(quality: int) -> None:
    decoded = decode_image(saved(photo(1), "JPEG", quality=quality, subsampling=2))
    assert decoded.jpeg is not None
    assert (decoded.jpeg.quality, decoded.jpeg.subsampling) == (quality, 2)
    assert standard_encoding(quality) == decoded.jpeg


def test_foreign_tables_get_the_nearest_quality() -> None:
    standard = np.array(standard_encoding(80).tables[0])
    assert estimate_quality(tuple(standard + (np.arange(64) % 3 == 0))) in range(78, 82)


def test_the_orientation_is_applied_and_dropped() -> None:
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    decoded = decode_image(saved(image, "JPEG", exif=exif, quality=95))
    assert (decoded.width, decoded.height) == decoded.image.size == (10, 20)
    red, _, blue = decoded.image.getpixel((5, 2))  # type: ignore[misc]
    assert red > 200 > blue
    assert not decoded.image.getexif()
    assert not decoded.image.info


def wide_gamut_profile() -> bytes:
    """sRGB with red and green exchanged: a profile that nobody can overlook."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"tmp?").replace(b"gXYZ", b"rXYZ").replace(b"tmp?", b"gXYZ")


def test_the_colour_profile_is_converted() -> None:
    red, green, blue = pixel(saved(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG", icc_profile=wide_gamut_profile()))
    assert green > 240
    assert max(red, blue) < 30
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = pixel(saved(Image.new("RGB", (4, 4), (200, 100, 50)), "PNG", icc_profile=srgb))
    assert np.abs(np.array(same) - (200, 100, 50)).max() <= 1
    assert pixel(saved(Image.new("L", (4, 4), 77), "PNG", icc_profile=srgb))[0] in range(76, 79)


def test_only_what_was_changed_is_not_plain() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({}, {"icc_profile": srgb}):
        data = saved(photo(1), "JPEG", quality=90, **options)
        decoded = decode_image(data)
        assert decoded.is_plain
        np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(Image.open(io.BytesIO(data))))
    exif = Image.Exif()
    exif[0x0112] = 6
    changed = [
        saved(photo(1), "JPEG", exif=exif),
        saved(photo(1), "PNG", icc_profile=wide_gamut_profile()),
        saved(photo(1).convert("RGBA"), "PNG"),
        saved(photo(1).quantize(), "PNG"),
    ]
    assert not any(decode_image(data).is_plain for data in changed)


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG, which Pillow does not write in colour."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_sixteen_bit_colour_with_and_without_alpha() -> None:
    colour = np.zeros((4, 4, 4), np.uint16)
    colour[...] = (65535, 128 * 257, 257, 65535)
    assert pixel(png16(colour[..., :3], 2)) == (255, 128, 1)
    assert pixel(png16(colour, 6)) == (255, 128, 1)
    colour[..., 3] = 0
    assert pixel(png16(colour, 6)) == (255, 255, 255)


def test_a_broken_profile_is_no_silent_colour() -> None:
    assert reason(saved(photo(1), "PNG", icc_profile=b"not a profile" * 20)) == "colour_undefined"


def test_cmyk_without_a_profile_is_rejected() -> None:
    assert reason(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) == "colour_undefined"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), "PNG"))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(decode_image(saved(Image.fromarray(values), "TIFF")).image)[0, 2].tolist() == [128] * 3


def test_pixels_without_a_range_are_rejected() -> None:
    assert reason(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "colour_undefined"
    assert reason(saved(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")) == "colour_undefined"


def test_transparency_lies_over_white_and_hides_what_is_under_it() -> None:
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG")) == (255, 0, 0)
    assert pixel(saved(Image.new("LA", (4, 4), (0, 128)), "PNG"))[0] in (127, 128)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(saved(palette, "PNG")) == (10, 200, 30)
    assert pixel(saved(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert pixel(saved(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9))) == (255, 255, 255)


def test_one_bit_and_grey() -> None:
    assert pixel(saved(Image.new("1", (4, 4), 1), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("L", (4, 4), 90), "JPEG", quality=100)) == (90, 90, 90)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_rejected(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    assert reason(saved(frames[0], file_format, save_all=True, append_images=frames[1:])) == "animated"


def test_a_cameras_multi_picture_file_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = decode_image(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert decoded.format == "JPEG"
    assert decoded.image.getpixel((8, 8))[0] > 240  # type: ignore[index]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_rejected_or_whole(file_format: str) -> None:
    data = saved(photo(3, (64, 64)), file_format)
    whole = np.asarray(decode_image(data).image)
    for length in range(0, len(data), max(1, len(data) // 40)):
        try:
            decoded = decode_image(data[:length])
        except ImageRejected:
            continue
        np.testing.assert_array_equal(np.asarray(decoded.image), whole)  # a file may end in bytes that nobody needs


def test_damaged_bytes_never_crash() -> None:
    rng = np.random.default_rng(0)
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        data = np.frombuffer(saved(photo(3), file_format), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(ImageRejected):
                assert decode_image(damaged.tobytes()).image.mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [11_000, 30_000, 2**31 - 1])
def test_decompression_bombs_are_rejected_by_their_header(side: int) -> None:
    assert reason(png_header(side, side)) == "too_large"


def test_the_rest(tmp_path: Path) -> None:
    assert reason(b"") == "empty"
    assert reason(b"hello") == "not_an_image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not_an_image"
    assert reason(tmp_path / "absent.png") == "unreadable"
    assert reason(tmp_path) == "unreadable"
    rejected = pickle.loads(pickle.dumps(ImageRejected("empty", "no bytes")))
    assert (rejected.reason, rejected.detail) == ("empty", "no bytes")


@pytest.mark.skipif("VLM_DETECT_DATA" not in os.environ, reason="needs the development data of VLM_DETECT_DATA")
def test_photos_in_adobe_rgb_get_back_their_colours() -> None:
    """Shown as if they were sRGB they look washed out: converted, their colours are stronger."""
    found = 0
    for path in sorted((Path(os.environ["VLM_DETECT_DATA"]) / "imagenet_sample").iterdir()):
        plain = Image.open(path)
        profile = plain.info.get("icc_profile")
        if not profile or b"Adobe RGB" not in profile:
            continue
        found += 1
        decoded = decode_image(path)
        saturation = [np.asarray(image.convert("HSV"), float)[..., 1].mean() for image in (plain, decoded.image)]
        assert not decoded.is_plain
        assert saturation[1] > saturation[0]
    assert found
