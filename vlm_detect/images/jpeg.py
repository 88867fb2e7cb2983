"""How a JPEG was compressed, read from its tables.

encoding = jpeg_encoding(opened)      # of an image that Pillow has opened; None where it is no JPEG
standard_encoding(90)                 # what libjpeg does at a quality
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin


@dataclass(frozen=True)
class JpegEncoding:
    """How a JPEG was compressed: enough to compress another image the same way.

    `tables` are the quantisation tables as Pillow gives and takes them; `subsampling` is Pillow's 0 (4:4:4), 1 (4:2:2),
    2 (4:2:0) or -1 (another, or grey); `quality` is the libjpeg quality whose standard tables come nearest, 1 to 100.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    quality: int


def jpeg_encoding(opened: Image.Image) -> JpegEncoding | None:
    """How the file of an opened image was compressed; None where it is no JPEG."""
    if not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    tables = tuple(tuple(opened.quantization[i]) for i in sorted(opened.quantization))
    return JpegEncoding(tables, JpegImagePlugin.get_sampling(opened), estimate_quality(tables[0])) if tables else None


@functools.lru_cache(maxsize=1024)  # a set's files share a few tables
def estimate_quality(luminance_table: tuple[int, ...]) -> int:
    """The libjpeg quality (1 to 100) whose luminance table is nearest in mean absolute difference.

    Exact for files written by libjpeg and Pillow; a camera's or Photoshop's own tables have no quality number, and the
    nearest is what they amount to. Of equal distances the highest quality is taken.
    """
    differences = np.abs(_standard_tables() - np.array(luminance_table)).mean(axis=1)  # (100,)
    return 100 - int(np.argmin(differences[::-1]))


@functools.cache
def _standard_tables() -> np.ndarray:
    """(100, 64): the luminance table of each quality, read back from Pillow's own files so that the order agrees."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            tables.append(image.quantization[0])
    return np.array(tables)


def standard_encoding(quality: int) -> JpegEncoding:
    """What libjpeg does at `quality` by default: its own tables, chroma at half resolution."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        encoding = jpeg_encoding(image)
    assert encoding is not None
    return encoding
