"""What a network is shown of an image: its pixels as they are, or inverted with the colours driven to their ends.

    show(pixels, "invert_saturate", 8.0)      # (B, 3, H, W) uint8 in, the same out

The second view is that of the published small-CNN baseline: `ImageOps.invert`, then `ImageEnhance.Color(factor)` of
Pillow, on the batch and to the bit. With a factor of 500 a pixel keeps little more than which of its channels lie above
its grey; `docs/baselines.md` shows what that costs at 32 pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

View = Literal["plain", "invert_saturate"]


def show(pixels: Tensor, view: View, saturation: float) -> Tensor:
    """(B, 3, H, W) uint8 RGB, seen through `view`."""
    return saturate(255 - pixels, saturation) if view == "invert_saturate" else pixels


def saturate(pixels: Tensor, factor: float) -> Tensor:
    """Pillow's `ImageEnhance.Color(factor)` on a batch (B, 3, H, W) uint8: each channel moved away from the grey.

    grey + factor * (channel - grey), cut off at 0 and 255 and its fraction dropped; grey is Pillow's integer form of
    ITU-R 601-2.
    """
    red, green, blue = pixels.to(torch.int32).unbind(1)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None].float()
    moved = grey + factor * (pixels.float() - grey)
    # `to(uint8)` of a permuted result would lose the layout that the convolutions are fastest in
    return moved.clamp_(0, 255).to(torch.uint8).contiguous(memory_format=_layout(pixels))


def _layout(pixels: Tensor) -> torch.memory_format:
    channels_last = pixels.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
