"""Images to crops: one global view and overlapping tiles, bit for bit as the official Pillow path cuts them.

    photo -> [global crop | tiles row by row], each crop_size square, uint8 -> normalised with bf16 rounding

Source: vikhyat/moondream `image_crops.py` and `vision.py::prepare_crops`. The resize is Pillow's LANCZOS, width first,
then height, in two calls: Pillow 13 chooses the order itself, and where pyvips is installed the official code resizes
with that instead, which differs by up to 140 grey levels at the edges of enlarged images. The choice is written into
the saved processor and never made by what happens to be installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from vlm_detect.ahead import ahead

BACKEND = "pillow_lanczos_width_first"


def select_tiling(height: int, width: int, window: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns of tiles for an image whose sides, less the outer margins, are `height` and `width` pixels."""
    if height <= window or width <= window:
        return 1, 1
    min_rows, min_columns = math.ceil(height / window), math.ceil(width / window)
    if min_rows * min_columns > max_tiles:
        shrink = math.sqrt(max_tiles / (min_rows * min_columns))
        return max(1, math.floor(min_rows * shrink)), max(1, math.floor(min_columns * shrink))
    rows = max(math.floor(math.sqrt(max_tiles * height / width)), min_rows)
    columns = max(math.floor(math.sqrt(max_tiles * width / height)), min_columns)
    if rows * columns > max_tiles:
        if columns > rows:
            columns = math.floor(max_tiles / rows)
        else:
            rows = math.floor(max_tiles / columns)
    return max(1, rows), max(1, columns)


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize by LANCZOS in two passes, width first."""
    return image.resize((width, image.height), Image.Resampling.LANCZOS).resize(
        (width, height), Image.Resampling.LANCZOS
    )


def pixel_table(dtype: torch.dtype) -> np.ndarray:
    """The normalised value of each of the 256 grey levels, float32: (x / 255 - 0.5) / 0.5, every step in `dtype`.

    Only 256 values are possible, so a table is exact; float32 throughout would move the logits by 4e-2.
    """
    levels = torch.arange(256, dtype=torch.uint8).to(dtype)
    return levels.div_(255.0).sub_(0.5).div_(0.5).float().numpy()


class MoondreamImageProcessor(ImageProcessingMixin):
    """PIL images to `pixel_values` (B, K, 3, C, C) float32 and `tilings` (B, 2); K is the largest count of crops.

    Image i has 1 + rows * columns crops; the rest of its K are zeros, which the model skips. No EXIF rotation is
    applied and alpha is dropped, as in the official code: decode with `vlm_detect.images.decode` first.
    """

    model_input_names = ["pixel_values", "tilings"]  # noqa: RUF012  a class attribute of the mixin

    def __init__(
        self,
        crop_size: int = 378,
        patch_size: int = 14,
        max_crops: int = 12,
        overlap_margin: int = 4,
        pixel_dtype: str = "bfloat16",
        backend: str = BACKEND,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if backend != BACKEND:
            raise ValueError(f"resize backend {backend!r} is not supported; this processor has {BACKEND!r}")
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.max_crops = max_crops
        self.overlap_margin = overlap_margin
        self.pixel_dtype = pixel_dtype
        self.backend = backend

    def crops(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """All crops of one image, uint8 (1 + rows * columns, C, C, 3), the global one first, and (rows, columns)."""
        image = image.convert("RGB")
        size = self.crop_size
        margin = self.overlap_margin * self.patch_size
        window = (size // self.patch_size - 2 * self.overlap_margin) * self.patch_size
        rows, columns = select_tiling(image.height - 2 * margin, image.width - 2 * margin, window, self.max_crops)
        whole = np.asarray(resize(image, columns * window + 2 * margin, rows * window + 2 * margin))
        cut = [np.asarray(resize(image, size, size))]
        cut += [
            whole[row * window : row * window + size, column * window : column * window + size]
            for row in range(rows)
            for column in range(columns)
        ]
        return np.stack(cut), (rows, columns)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image],
        return_tensors: str | None = None,
        do_normalize: bool = True,
        threads: int = 0,
    ) -> BatchFeature:
        """Without `do_normalize`, `pixel_values` are grey levels, uint8: a quarter of the bytes, for the same tower.

        `threads` cut the crops of so many images at a time.
        """
        if isinstance(images, Image.Image):
            images = [images]
        cut, tilings = zip(*ahead(self.crops, images, threads), strict=True)
        table = pixel_table(getattr(torch, self.pixel_dtype))
        shape = (len(cut), max(map(len, cut)), 3, self.crop_size, self.crop_size)
        pixel_values = np.zeros(shape, dtype=np.float32 if do_normalize else np.uint8)
        for row, crops in zip(pixel_values, cut, strict=True):
            row[: len(crops)] = (table[crops] if do_normalize else crops).transpose(0, 3, 1, 2)
        data = {"pixel_values": pixel_values, "tilings": np.asarray(tilings, dtype=np.int64)}
        return BatchFeature(data, tensor_type=return_tensors)
