"""Check whether a decoded image is usable, and describe its source."""

from __future__ import annotations

from typing import Any

import imagehash
from PIL import Image

from vlm_detect.images.decode import DecodedImage, ImageRejected
from vlm_detect.images.encode import is_blank


def check_usable(decoded: DecodedImage, min_side: int) -> None:
    """Raise `ImageRejected` for an image with a side below `min_side` pixels, or of a single colour."""
    if min(decoded.width, decoded.height) < min_side:
        raise ImageRejected("too_small", f"{decoded.width}x{decoded.height} pixels, a side below {min_side}")
    if is_blank(decoded.image):
        raise ImageRejected("blank", "a single colour")


def source_facts(
    where: str, decoded: DecodedImage, licence: str | None, *, jpeg_quality: int | None = None
) -> dict[str, Any]:
    """The column `source`; `jpeg_quality` is that of an earlier JPEG compression of a file in another format."""
    return {
        "path_or_id": where,
        "sha256": decoded.sha256,
        "phash": perceptual_hash(decoded.image),
        "format": decoded.format,
        "jpeg_quality": decoded.jpeg.quality if decoded.jpeg else jpeg_quality,
        "width": decoded.width,
        "height": decoded.height,
        "licence": licence,
    }


def perceptual_hash(image: Image.Image) -> str:
    """64 bits, hexadecimal."""
    return str(imagehash.phash(image))
