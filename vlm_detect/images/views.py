"""Copies of an image as they come about on its way: scaled, cropped, compressed once more.

    for name, copy in views(image, 3):       # the first three of VIEWS
        ...

A verdict that changes with them is one on the copy, not on the image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PIL import Image

from vlm_detect.images.encode import through_jpeg


def rescale(image: Image.Image, share: float) -> Image.Image:
    """Both sides times `share`."""
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def crop(image: Image.Image, share: float, left: float = 0.5, top: float = 0.5) -> Image.Image:
    """`share` of both sides; `left` and `top` in [0, 1] of the room that this leaves."""
    width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
    x, y = round((image.width - width) * left), round((image.height - height) * top)
    return image.crop((x, y, x + width, y + height))


# In the order in which `scan --views N` takes them: one of each sort, then again stronger.
VIEWS: tuple[tuple[str, Callable[[Image.Image], Image.Image]], ...] = (
    ("JPEG 75", partial(through_jpeg, quality=75)),
    ("scaled to 0.75", partial(rescale, share=0.75)),
    ("cropped to 0.9", partial(crop, share=0.9)),
    ("JPEG 50", partial(through_jpeg, quality=50)),
    ("scaled to 0.5", partial(rescale, share=0.5)),
    ("cropped to 0.75", partial(crop, share=0.75)),
)


def views(image: Image.Image, n: int) -> list[tuple[str, Image.Image]]:
    """The first `n` of `VIEWS`, with their names."""
    return [(name, change(image)) for name, change in VIEWS[:n]]
