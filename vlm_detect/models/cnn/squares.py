"""One image as the square of pixels that a CNN takes."""

from __future__ import annotations

from typing import Literal

from PIL import Image

from vlm_detect.images.decode import ImageRejected

Fit = Literal["crop", "resize"]


def to_square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """The middle `size` x `size` pixels, for "resize" after the shorter side was brought to `size` (Lanczos).

    Raises:
        ImageRejected: "too_small", where "crop" finds fewer pixels.
    """
    if fit == "resize" and min(image.size) != size:
        scale = size / min(image.size)
        wide = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(wide, Image.Resampling.LANCZOS)
    if min(image.size) < size:
        raise ImageRejected("too_small", f"{image.width}x{image.height} pixels, at least {size}x{size} are needed")
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
