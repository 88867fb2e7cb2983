"""A decoded picture at the door: whether it is of use, and what its row says of where it came from."""

from __future__ import annotations

from typing import Any

import imagehash
from PIL import Image

from vlm_detect.images.decode import DecodedImage, ImageRejected
from vlm_detect.images.encode import is_blank


def check_usable(decoded: DecodedImage, min_side: int) -> None:
    """`ImageRejected` for a picture with a side below `min_side` pixels, or of one colour all over."""
    if min(decoded.width, decoded.height) < min_side:
        raise ImageRejected("too_small", f"{decoded.width}x{decoded.height} pixels, a side below {min_side}")
    if is_blank(decoded.image):
        raise ImageRejected("blank", "one colour all over")


def source_facts(
    where: str, decoded: DecodedImage, licence: str | None, *, jpeg_quality: int | None = None
) -> dict[str, Any]:
    """The column `source`; `jpeg_quality` is that of the JPEG from which a file of another format was cut."""
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
