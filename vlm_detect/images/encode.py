"""Give both members of a pair the same size and the same encoder.

The photo has been compressed once before, unlike its twin. So the artifacts of the photo's quantisation tables and
chroma subsampling are first added to the twin, at the photo's size and downscaled by the same filter. Then one encoder
with the same parameters writes both, without metadata.

Earlier lossy compression other than JPEG (WebP, AVIF) is recorded in `source.format` but cannot be reproduced: such
files do not store their settings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.images.jpeg import JpegEncoding, standard_encoding

FILTER = Image.Resampling.LANCZOS


def crop_size(photo_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the largest part of a photo with the aspect of `size`."""
    width, height = photo_size
    return min(width, round(height * size[0] / size[1])), min(height, round(width * size[1] / size[0]))


def crop_to_aspect(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part of `image` with the aspect of `size` (width, height); nothing is stretched or padded."""
    width, height = crop_size(image.size, size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop to the aspect of `size` and resize to it."""
    return resize(crop_to_aspect(image, size), size)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, FILTER)


def like_source(
    twin: Image.Image, size: tuple[int, int], photo_size: tuple[int, int], jpeg: JpegEncoding | None
) -> Image.Image:
    """The twin at `size`, with the artifacts of the photo's compression at `photo_size` (after its crop).

    Upscaling the twin, compressing it and downscaling it again would also blur it: 13 % of real images' fine detail
    (mean absolute Laplacian) was lost, a leak as large as the original one. So only the difference caused by
    compression is computed on the upscaled twin, downscaled like the photo, and added to the twin itself: within 4 % of
    the photo's own detail at all tested factors (1 to 3 times, qualities 30 to 90), and plain JPEG for equal sizes.
    """
    fitted = resize(twin, size)
    if jpeg is None:
        return fitted
    enlarged = resize(twin, photo_size)
    before = np.asarray(resize(enlarged, size), dtype=np.int16)
    after = np.asarray(resize(recompress(enlarged, jpeg), size), dtype=np.int16)
    marked = np.asarray(fitted, dtype=np.int16) + (after - before)
    return Image.fromarray(marked.clip(0, 255).astype(np.uint8))


def recompress(image: Image.Image, jpeg: JpegEncoding) -> Image.Image:
    """A JPEG round trip of `image` with the given tables; a one-table (grey) source compresses luminance only."""
    if len(jpeg.tables) == 1:
        return through_jpeg(ImageOps.grayscale(image), qtables=[list(jpeg.tables[0])])
    options = {"subsampling": jpeg.subsampling} if jpeg.subsampling >= 0 else {}
    return through_jpeg(image, qtables=[list(table) for table in jpeg.tables], **options)


def through_jpeg(image: Image.Image, quality: int = 75, **options: Any) -> Image.Image:
    """The RGB pixels of `image` after a JPEG round trip in Pillow with these options."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return Image.open(buffer).convert("RGB")


def describe_jpeg(jpeg: JpegEncoding | None) -> dict[str, Any] | None:
    """A photo's compression, for its receipt: the quality if the tables are libjpeg's, otherwise the tables."""
    if jpeg is None:
        return None
    settings = {"quality": jpeg.quality, "subsampling": jpeg.subsampling}
    return settings if jpeg.tables == standard_encoding(jpeg.quality).tables else settings | {"tables": jpeg.tables}


def read_jpeg(settings: Mapping[str, Any] | None) -> JpegEncoding | None:
    """The inverse of `describe_jpeg`."""
    if settings is None:
        return None
    tables = settings.get("tables") or standard_encoding(settings["quality"]).tables
    return JpegEncoding(tuple(tuple(table) for table in tables), settings["subsampling"], settings["quality"])


def encode_image(image: Image.Image, config: EncodeConfig) -> bytes:
    """RGB pixels to bytes, without metadata."""
    buffer = io.BytesIO()
    image = image.copy()
    image.info.clear()  # Pillow would write its comments, profiles and so on
    if config.encode == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=config.quality, subsampling=config.subsampling)
    return buffer.getvalue()


def is_blank(image: Image.Image, min_deviation: float = 2.0) -> bool:
    """Whether the image is blank: every channel's standard deviation is below `min_deviation` (of 255)."""
    counts = np.array(image.histogram()).reshape(-1, 256)  # (channels, 256)
    values = np.arange(256)
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    return bool(np.sqrt(variance.clip(0).max()) < min_deviation)
