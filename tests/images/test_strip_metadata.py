"""Metadata go, pixels stay bit for bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.data.factories import photo
from vlm_detect.images.strip_metadata import bare_bytes


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def metadata() -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 98}, {"restart_marker_rows": 1}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg(mode: str, options: dict[str, Any]) -> None:
    image = photo(1, (70, 50)).convert(mode)
    full = saved(image, "JPEG", comment=b"mine", xmp=b"<x/>", **metadata(), **options)
    bare = bare_bytes(full + b"what a phone appends")
    assert bare is not None
    opened = Image.open(io.BytesIO(bare))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(full))))
    assert set(opened.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "progressive", "progression"}
    assert bare == bare_bytes(saved(image, "JPEG", **options))
    assert bare_bytes(bare) == bare


def test_a_png() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat, best quality")
    full = saved(photo(1), "PNG", pnginfo=text, **metadata())
    bare = bare_bytes(full)
    assert bare is not None
    opened = Image.open(io.BytesIO(bare))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(photo(1)))
    assert not opened.info
    assert bare == bare_bytes(saved(photo(1), "PNG"))


def test_other_formats_have_to_be_encoded_again() -> None:
    jpeg, png = saved(photo(1), "JPEG"), saved(photo(1), "PNG")
    assert [bare_bytes(data) for data in (b"", b"GIF89a", saved(photo(1), "WEBP"))] == [None] * 3
    assert [bare_bytes(data) for data in (jpeg[:-2], jpeg[:30], png[:-12], b"\xff\xd8\x00\x00\x00\x00")] == [None] * 4
