"""The compression settings of a JPEG, from its tables.

encoding = jpeg_encoding(opened)      # of an image opened by Pillow; None if it is not a JPEG
standard_encoding(90)                 # libjpeg's settings at a quality
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin


@dataclass(frozen=True)
class JpegEncoding:
    """A JPEG's compression settings: enough to compress another image in the same way.

    `tables` are the quantisation tables in Pillow's order; `subsampling` is Pillow's 0 (4:4:4), 1 (4:2:2),
    2 (4:2:0) or -1 (another, or grey); `quality` is the libjpeg quality with the nearest standard tables, 1 to 100.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    quality: int


def jpeg_encoding(opened: Image.Image) -> JpegEncoding | None:
    """The compression settings of an opened image's file; None if it is not a JPEG."""
    if not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    tables = tuple(tuple(opened.quantization[i]) for i in sorted(opened.quantization))
    return JpegEncoding(tables, JpegImagePlugin.get_sampling(opened), estimate_quality(tables[0])) if tables else None


@functools.lru_cache(maxsize=1024)  # the files of a set share a few tables
def estimate_quality(luminance_table: tuple[int, ...]) -> int:
    """The libjpeg quality (1 to 100) whose luminance table is nearest in mean absolute difference.

    Exact for files written by libjpeg and Pillow; custom tables of cameras or Photoshop have no quality number, and get
    the nearest. Ties give the highest quality.
    """
    differences = np.abs(_standard_tables() - np.array(luminance_table)).mean(axis=1)  # (100,)
    return 100 - int(np.argmin(differences[::-1]))


@functools.cache
def _standard_tables() -> np.ndarray:
    """(100, 64): the luminance table of each quality, read back from files written by Pillow, so that the order
    agrees."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            tables.append(image.quantization[0])
    return np.array(tables)


def standard_encoding(quality: int) -> JpegEncoding:
    """libjpeg's default settings at `quality`: its standard tables, chroma at half resolution."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        encoding = jpeg_encoding(image)
    assert encoding is not None
    return encoding
