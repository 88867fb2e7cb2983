"""Pixels as the grey levels of a resized image, a byte each, normalised on the device: a quarter of the bytes to send.

    levels = GreyLevels.find(processor.image_processor, make)     # None where the processor's pixels do not follow so
    levels.normalize({"pixel_values": bytes_on_the_device})       # the processor's own numbers

Image processors of transformers end by `(level * rescale_factor - mean) / std` for each channel, and leave it out where
they are asked to. Whether one does, and in which order its tensors hold the channels, is found by trying: pixels of
small images, made in both ways, have to agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vlm_detect.errors import UserError

RAW = {"do_rescale": False, "do_normalize": False}  # options of an image processor that leaves levels as they are
_SIZES = [(64, 64), (96, 40), (30, 80)]  # (width, height) of the images that are tried
_TOLERANCE = 1e-5
Pixels = dict[str, torch.Tensor]
Order = Literal["images", "channels", "pixels"]
_ORDERS: tuple[Order, ...] = ("images", "channels", "pixels")


class GreyLevels:
    """The tensors `names` hold levels, whose values (3, 256) float32 are in `table`.

    Their `order` is images (..., 3, H, W), or patches (..., 3 * values) by channels, or (..., values * 3) by pixels.
    """

    def __init__(self, table: torch.Tensor, order: Order, names: frozenset[str]) -> None:
        self.names = names
        self._table = table
        self._order: Order = order
        self._tables: dict[torch.device, torch.Tensor] = {}  # copied to a device once: a copy waits for a GPU

    def __reduce__(self) -> tuple[Any, ...]:
        return GreyLevels, (self._table, self._order, self.names)  # for worker processes: nothing on a device

    @classmethod
    def find(cls, image_processor: Any, make: Callable[[Image.Image, dict[str, bool]], Pixels]) -> GreyLevels | None:
        """`make` gives the processor's tensors of an image, called with no options, or with `RAW`."""
        table = _table(image_processor)
        if table is None:
            return None
        images = [noise(size) for size in _SIZES]
        try:
            plain, raw = [make(image, {}) for image in images], [make(image, RAW) for image in images]
        except (ValueError, TypeError, UserError):  # an option that it does not know
            return None
        names = frozenset(name for name, tensor in raw[0].items() if _are_levels(tensor, plain[0].get(name)))
        for order in _ORDERS if names else ():
            found = cls(table, order, names)
            if all(found._makes(one, other) for one, other in zip(raw, plain, strict=True)):
                return found
        return None

    def as_bytes(self, raw: Pixels) -> Pixels:
        """Levels that the processor has in a wider type, as uint8."""
        return {name: tensor.to(torch.uint8) if name in self.names else tensor for name, tensor in raw.items()}

    def normalize(self, pixels: Pixels) -> Pixels:
        """The processor's own pixels, float32, on the levels' device; what holds no levels is passed on."""
        return {
            name: self._values(tensor) if name in self.names and tensor.dtype == torch.uint8 else tensor
            for name, tensor in pixels.items()
        }

    def _values(self, levels: torch.Tensor) -> torch.Tensor:
        device = levels.device
        if device not in self._tables:
            with torch.inference_mode(mode=False):  # training takes it too
                self._tables[device] = self._table.to(device)
        after = {"images": levels.shape[-2] * levels.shape[-1], "channels": levels.shape[-1] // 3, "pixels": 1}
        by_channel = levels.reshape(-1, 3, after[self._order]).int()  # (before, 3, after)
        index = by_channel + 256 * torch.arange(3, device=device, dtype=torch.int32)[:, None]
        return self._tables[device].flatten().index_select(0, index.flatten()).view(levels.shape)

    def _makes(self, raw: Pixels, plain: Pixels) -> bool:
        try:
            made = self.normalize(self.as_bytes(raw))
        except RuntimeError:  # these channels are in another order
            return False
        return made.keys() == plain.keys() and all(
            tensor.shape == plain[name].shape
            and tensor.dtype == plain[name].dtype
            and torch.allclose(tensor, plain[name], rtol=0, atol=_TOLERANCE)
            for name, tensor in made.items()
        )


def _are_levels(raw: torch.Tensor, plain: torch.Tensor | None) -> bool:
    """Whether a tensor holds grey levels, where the processor has other numbers."""
    if plain is None or raw.shape != plain.shape or torch.equal(raw, plain):
        return False
    return raw.dtype == torch.uint8 or bool(((raw >= 0) & (raw <= 255) & (raw == raw.round())).all())


def _table(image_processor: Any) -> torch.Tensor | None:
    """(3, 256): what the processor makes of each level of each channel; None where it does not rescale."""
    factor = getattr(image_processor, "rescale_factor", None)
    if not (getattr(image_processor, "do_rescale", False) and isinstance(factor, float)):
        return None
    values = (np.arange(256) * factor).astype(np.float32)[None].repeat(3, axis=0)
    if getattr(image_processor, "do_normalize", False):
        mean, std = (np.array(getattr(image_processor, name), np.float32) for name in ("image_mean", "image_std"))
        if mean.shape != (3,) or std.shape != (3,):
            return None
        values = (values - mean[:, None]) / std[:, None]
    return torch.from_numpy(values)


def noise(size: tuple[int, int], seed: int | None = None) -> Image.Image:
    """An image of (width, height) to try a model on; `seed` is its width by default."""
    width, height = size
    generator = np.random.default_rng(width if seed is None else seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
