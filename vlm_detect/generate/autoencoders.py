"""A photo through a generator's autoencoder and back, whatever the kind of autoencoder.

    pixels = through_autoencoder(pipeline.vae, pixels)      # (B, 3, H, W) in [-1, 1]

The latents are the mode of the encoder's distribution, or what a deterministic encoder gives (Sana's DC-AE, TAESD), so
that no seed is needed. Autoencoders of video (Qwen-Image's) see an image as one frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlm_detect.errors import UserError


def through_autoencoder(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to the reconstruction, of the same shape."""
    reads_video = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    with _without_overflow(vae):
        pixels = pixels.to(vae.dtype)
        encoded = vae.encode(pixels[:, :, None] if reads_video else pixels)
        decoded = vae.decode(_latents(vae, encoded)).sample
    return decoded[:, :, 0] if reads_video else decoded


@contextmanager
def _without_overflow(vae: Any) -> Iterator[None]:
    """In float32 where it is in float16 and its configuration says that it overflows there, as Stable Diffusion XL's
    does, whose pipeline decodes alike."""
    if vae.dtype is not torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)


def _latents(vae: Any, encoded: Any) -> torch.Tensor:
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    for name in ("latent", "latents"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    raise UserError(f"--twins vae: {type(vae).__name__} gives no latents that are known here; give --twins caption")
