"""The nano SD 3.5's autoencoder: diffusers' ``AutoencoderKL`` with 16 latent channels, as SD 3 has it, and factor 4.

A 32x32 photograph becomes 16 x 8 x 8 latents. SD 3's factor 8 would leave 4x4 places, too few to represent an image.
The loss has no perceptual network, which would be larger than the model: it is L1 on the pixels and on their
differences to the right and below, which punishes blur, and a KL term.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from vlm_detect.nano.config import VaeConfig
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.training import train


def build_autoencoder(channels: tuple[int, ...], sample_size: int = 32) -> AutoencoderKL:
    """One resolution per channel width, like SD 3's but without the 1x1 convolutions around the latents."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=sample_size,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def to_pixels(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def autoencoder_loss(
    vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator, *, edge_weight: float, kl_weight: float
) -> dict[str, Tensor]:
    """Loss of one batch of pixels (B, 3, H, W) in [-1, 1].

    ``kl_weight`` weighs the mean KL of a latent number against the mean absolute error of a pixel. With a Laplace
    likelihood of scale b, and three pixel numbers to each latent one, the evidence bound has it at b / 3.
    """
    posterior = vae.encode(pixels).latent_dist
    # the posterior's own sample() takes no seed; with the step's generator a resumed run is identical
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded - pixels
    pixel = error.abs().mean()
    edge = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
    return {"loss": pixel + edge_weight * edge + kl_weight * kl, "pixel": pixel, "edge": edge, "kl": kl}


@torch.inference_mode()
def encode_all(vae: AutoencoderKL, images: np.ndarray, batch: int = 50) -> Tensor:
    """The latents' means, unscaled: (N, 16, H/4, W/4)."""
    parts = np.array_split(images, max(1, len(images) // batch))
    return torch.cat([vae.encode(to_pixels(part).to(vae.device)).latent_dist.mean.cpu() for part in parts])


def set_latent_scale(vae: AutoencoderKL, latents: Tensor) -> None:
    """Write shift and scale of ``latents`` to the config: pipelines use (latents - shift) * scale, mean 0 and std 1."""
    scale: dict[str, Any] = {"shift_factor": latents.mean().item(), "scaling_factor": 1 / latents.std().item()}
    vae.register_to_config(**scale)


@torch.inference_mode()
def psnr_db(vae: AutoencoderKL, images: np.ndarray, batch: int = 50) -> float:
    """Mean over images of the peak signal-to-noise ratio of encode and decode, in dB."""
    values = []
    for part in np.array_split(images, max(1, len(images) // batch)):
        pixels = to_pixels(part).to(vae.device)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (decoded - pixels).pow(2).mean((1, 2, 3))))
    return torch.cat(values).mean().item()


def train_autoencoder(
    config: VaeConfig, training: Photos, held_out: Photos, folder: Path, seed: int, device: torch.device | str = "cpu"
) -> tuple[AutoencoderKL, dict[str, float]]:
    """Train (or finish training) the autoencoder and save it to `folder/vae`; returns it with its figures."""
    torch.manual_seed(seed)
    vae = build_autoencoder(config.channels, training.images.shape[1]).to(device)

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(training), (config.batch,), generator=generator)
        pixels = to_pixels(training.images[rows.numpy()]).to(device)
        return autoencoder_loss(vae, pixels, generator, edge_weight=config.edge_weight, kl_weight=config.kl_weight)

    figures = train("vae", vae, loss_of, config, folder=folder, seed=seed)
    set_latent_scale(vae, encode_all(vae, training.images[:5000]))
    figures["psnr_db"] = round(psnr_db(vae, held_out.images[:1000]), 2)
    vae.save_pretrained(folder / "vae")
    return vae, figures
