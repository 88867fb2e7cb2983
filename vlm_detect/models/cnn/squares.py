"""One image as the square of pixels that a CNN takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
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


def squares_of(images: Sequence[Image.Image], size: int, fit: Fit) -> np.ndarray:
    """(N, size, size, 3) uint8: each image's square as in training.

    An image smaller than the square is upscaled regardless of `fit`: at inference no image is refused.
    """
    squares = [to_square(image.convert("RGB"), size, "resize" if min(image.size) < size else fit) for image in images]
    return np.stack([np.asarray(square) for square in squares])
