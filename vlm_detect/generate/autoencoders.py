"""A photo through a generator's autoencoder and back, whatever the kind of autoencoder.

    pixels = through_autoencoder(pipeline.vae, pixels)      # (B, 3, H, W) in [-1, 1]

The latents are the mode of the encoder's distribution, or what a deterministic encoder gives (Sana's DC-AE, TAESD), so
that no seed is needed. Autoencoders of video (Qwen-Image's) see an image as one frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm_detect.errors import UserError


def through_autoencoder(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] to the reconstruction, of the same shape."""
    reads_video = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    encoded = vae.encode(pixels[:, :, None] if reads_video else pixels)
    decoded = vae.decode(_latents(vae, encoded)).sample
    return decoded[:, :, 0] if reads_video else decoded


def _latents(vae: Any, encoded: Any) -> torch.Tensor:
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    for name in ("latent", "latents"):
        if hasattr(encoded, name):
            return getattr(encoded, name)
    raise UserError(f"--twins vae: {type(vae).__name__} gives no latents that are known here; give --twins caption")
