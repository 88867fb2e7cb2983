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
from PIL import Image, ImageCms, ImageOps

from tests.data.factories import photo
from vlm_detect.images import bounds, colour
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.colour import to_rgb
from vlm_detect.images.decode import (
    FIRST_OF_SEVERAL,
    UNREAD_EXIF,
    UNREAD_METADATA,
    decode_image,
    shown_pixels,
    upright_size,
)
from vlm_detect.images.jpeg import estimate_quality, standard_encoding


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


def test_the_format_is_not_taken_from_the_extension(tmp_path: Path) -> None:
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
    red, _, blue = decoded.image.getpixel((5, 2))
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


def test_only_changed_images_are_not_plain() -> None:
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


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, lines: list[bytes], depth: int, colour_type: int, **chunks: bytes) -> bytes:
    """A PNG of any kind (Pillow can write only some); `chunks` come before its pixels."""
    header = struct.pack(">IIBBBBB", width, len(lines), depth, colour_type, 0, 0, 0)
    between = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    return png(pixels.shape[1], [row.astype(">u2").tobytes() for row in pixels], 16, colour_type)


def test_sixteen_bit_colour_with_and_without_alpha() -> None:
    colour = np.zeros((4, 4, 4), np.uint16)
    colour[...] = (65535, 128 * 257, 257, 65535)
    assert pixel(png16(colour[..., :3], 2)) == (255, 128, 1)
    assert pixel(png16(colour, 6)) == (255, 128, 1)
    colour[..., 3] = 0
    assert pixel(png16(colour, 6)) == (255, 255, 255)


def profiles() -> dict[str, bytes]:
    """Profiles that describe no such pixels as they are put on."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "broken": b"not a profile" * 20,
        "cut": srgb[: len(srgb) // 3],
        "short": b"icc",
        "of_lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        "of_grey": srgb[:16] + b"GRAY" + srgb[20:],
        "of_rgb": srgb,
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize("kind", ["broken", "cut", "short", "of_lab", "of_grey", "of_rgb"])
def test_an_unsuitable_profile_is_ignored_and_noted(mode: str, kind: str) -> None:
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    image = photo(1).convert(mode)
    plain = decode_image(saved(image, file_format))
    decoded = decode_image(saved(image, file_format, icc_profile=profiles()[kind]))
    np.testing.assert_allclose(np.asarray(decoded.image, int), np.asarray(plain.image, int), atol=1)
    fits = kind == "of_rgb" and mode in ("RGB", "P")
    assert (colour.PROFILE_PASSED_OVER in decoded.notes) == (not fits)


def test_cmyk_without_a_profile_is_converted_by_the_formula_of_viewers() -> None:
    decoded = decode_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(decoded.image, int)[4, 4] - (255, 0, 0)).max() <= 2
    assert decoded.notes == (colour.CMYK_BY_FORMULA,)
    assert not decoded.is_plain


def test_lab_is_converted() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (4, 4), (220, 60, 40)), srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(np.array(pixel(saved(image, "TIFF"))) - (220, 60, 40)).max() <= 2


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), "PNG"))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(decode_image(saved(Image.fromarray(values), "TIFF")).image)[0, 2].tolist() == [128] * 3


def tiff(bits: int, photometric: int, packed: bytes, width: int) -> bytes:
    """A grey TIFF of one line, which Pillow does not write of every kind."""
    packed += b"\0" * (len(packed) % 2)
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_grey_of_any_depth_is_scaled_by_its_own_range() -> None:
    def greys(data: bytes) -> list[int]:
        return np.asarray(decode_image(data).image)[0, :, 0].tolist()

    assert greys(tiff(16, 1, struct.pack("<HH", 65535, 257), 2)) == [255, 1]
    assert greys(tiff(16, 0, struct.pack("<HH", 65535, 257), 2)) == [0, 254]  # 0 is white
    assert greys(tiff(12, 1, bytes([0xFF, 0xF8, 0x00]), 2)) == [255, 128]
    assert greys(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257)) == [255, 1]
    assert greys(b"P5 2 1 1000\n" + struct.pack(">HH", 1000, 500)) == [255, 128]
    assert greys(b"P2 2 1 15\n15 3\n") == [255, 51]


@pytest.mark.parametrize(("depth", "stored"), [(1, b"\x40"), (2, b"\x1b"), (4, b"\x01\x2f"), (8, b"\0\1\2\xff")])
def test_the_transparent_grey_of_a_png_has_the_depth_of_the_file(depth: int, stored: bytes) -> None:
    """Pixel 1 is the transparent grey: it is white, and no other is touched."""
    data = png(4, [stored], depth, 0, tRNS=struct.pack(">H", 1))
    greys = np.asarray(decode_image(data).image)[0, :, 0].tolist()
    plain = np.asarray(decode_image(png(4, [stored], depth, 0)).image)[0, :, 0].tolist()
    assert greys[1] == 255 != plain[1] or depth == 1
    assert [greys[i] for i in (0, 2, 3)] == [plain[i] for i in (0, 2, 3)]


def test_the_transparent_colour_of_sixteen_bits() -> None:
    grey = png(3, [struct.pack(">HHH", 500, 501, 65535)], 16, 0, tRNS=struct.pack(">H", 500))
    assert np.asarray(decode_image(grey).image)[0, :, 0].tolist() == [255, 2, 255]
    values = [0x1200, 0x3400, 0x5600, 0x12, 0x34, 0x56]
    colour = png(2, [struct.pack(">6H", *values)], 16, 2, tRNS=struct.pack(">3H", *values[:3]))
    assert np.asarray(decode_image(colour).image)[0].tolist() == [[255] * 3, [0] * 3]


def test_pixels_without_a_range_are_rejected() -> None:
    assert reason(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "colour_undefined"
    assert reason(saved(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")) == "colour_undefined"


def test_transparency_is_composited_over_white_and_hides_colours() -> None:
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG")) == (255, 0, 0)
    assert pixel(saved(Image.new("LA", (4, 4), (0, 128)), "PNG"))[0] in (127, 128)
    premultiplied = Image.new("RGBA", (4, 4), (255, 0, 0, 128)).convert("RGBa")
    assert pixel(saved(premultiplied.convert("RGBA"), "PNG")) == to_rgb(premultiplied)[0].getpixel((0, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(saved(palette, "PNG")) == (10, 200, 30)
    assert pixel(saved(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert pixel(saved(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9))) == (255, 255, 255)


def test_one_bit_and_grey() -> None:
    assert pixel(saved(Image.new("1", (4, 4), 1), "PNG")) == (255, 255, 255)
    assert pixel(saved(Image.new("L", (4, 4), 90), "JPEG", quality=100)) == (90, 90, 90)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_first_frame_or_page_is_shown_and_noted(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    decoded = decode_image(saved(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert np.abs(np.asarray(decoded.image, int) - (255, 0, 0)).max() <= 3
    assert decoded.notes == (FIRST_OF_SEVERAL,)
    assert not decoded.is_plain
    assert decode_image(saved(frames[0], file_format)).notes == ()


def odd_metadata() -> dict[str, bytes]:
    """Sound pixels with metadata that make Pillow give the file up."""
    plain = saved(photo(1), "PNG")
    head, rest = plain[:33], plain[33:]
    long = zlib.compress(b"[" + b"1, " * 700_000 + b"1]")
    wrong = bytearray(chunk(b"tEXt", b"Title\0a dog"))
    wrong[-1] ^= 255
    found = {
        "long_ztxt": chunk(b"zTXt", b"workflow\0\0" + long),
        "long_itxt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + long),
        "many_texts": chunk(b"tEXt", b"workflow\0" + b"x" * 1_000_000) * 70,
        "long_profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
        "broken_exif": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
        "wrong_checksum": bytes(wrong),
        "broken_text": chunk(b"zTXt", b"workflow\0\0" + b"no zlib"),
        "unknown_compression": chunk(b"zTXt", b"workflow\0\7" + long),
    }
    return {name: head + extra + rest for name, extra in found.items()}


@pytest.mark.parametrize("kind", odd_metadata())
def test_unreadable_metadata_does_not_affect_the_pixels(kind: str) -> None:
    decoded = decode_image(odd_metadata()[kind])
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(photo(1)))
    quietly = kind in ("broken_text", "long_profile")  # which Pillow passes over itself
    assert quietly or decoded.notes in ((UNREAD_METADATA,), (UNREAD_EXIF,))


def test_orientation_and_profile_are_kept_if_texts_are_skipped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.new("RGB", (20, 10), (255, 0, 0)), "PNG", exif=exif, icc_profile=wide_gamut_profile())
    text = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000)))
    decoded = decode_image(turned[:33] + text + turned[33:])
    assert decoded.image.size == upright_size(turned) == (10, 20)
    assert decoded.image.getpixel((5, 5))[1] > 240
    assert UNREAD_METADATA in decoded.notes


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_every_orientation_in_every_format(file_format: str, orientation: int) -> None:
    image = photo(1, (24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, file_format, exif=exif, **({"quality": 100} if file_format in ("JPEG", "AVIF") else {}))
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode_image(data)
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(shown))
    assert upright_size(data) == decoded.image.size == shown_pixels(Image.open(io.BytesIO(data))).image.size
    assert decoded.image.size == ((16, 24) if orientation in (5, 6, 7, 8) else (24, 16))
    assert decoded.is_plain == (orientation not in range(2, 9))


def test_photos_of_phones_in_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(1, (48, 32)), "HEIF", exif=exif.tobytes(), quality=100)
    decoded = decode_image(data)
    assert (decoded.format, decoded.image.size, upright_size(data)) == ("HEIF", (32, 48), (32, 48))
    turned = photo(1, (48, 32)).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(decoded.image, int) - np.asarray(turned, int)).mean() < 10  # its chroma is halved

    monkeypatch.setattr(bounds, "readable_formats", lambda: ("JPEG", "PNG"))
    heif, avif = (data, r"pip install 'vlm-detect\[heif\]'"), (saved(photo(1), "AVIF"), "a Pillow with AVIF")
    for missing, remedy in (heif, avif):
        with pytest.raises(ImageRejected, match=remedy) as caught:
            decode_image(missing)
        assert caught.value.reason == "needs_extra"


def test_a_cameras_multi_picture_file_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = decode_image(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert decoded.format == "JPEG"
    assert decoded.image.getpixel((8, 8))[0] > 240


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncated_file_is_rejected_or_complete(file_format: str) -> None:
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
    rejected = pickle.loads(pickle.dumps(ImageRejected("empty", "is empty")))
    assert (rejected.reason, rejected.detail) == ("empty", "is empty")


@pytest.mark.skipif("VLM_DETECT_DATA" not in os.environ, reason="needs the development data of VLM_DETECT_DATA")
def test_photos_in_adobe_rgb_keep_their_colours() -> None:
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
