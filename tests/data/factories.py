"""Photos, and a Stable Diffusion 3 pipeline of a few thousand random weights, made in the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_detect.nano.autoencoder import build_autoencoder
from vlm_detect.nano.config import RendererConfig
from vlm_detect.nano.renderer import build_pipeline


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth random picture of `size` (width, height), unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_photos(folder: Path, count: int, *, suffix: str = ".png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo{seed:02d}{suffix}" for seed in range(count)]
    for seed, path in enumerate(paths):
        photo(seed).save(path)
    return paths


def tiny_sd3() -> Any:
    """A `StableDiffusion3Pipeline` of random weights that renders 16x16 pixels in milliseconds."""
    vae = build_autoencoder((8, 8, 8), sample_size=16)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    # random weights draw nearly grey pictures, which would be rejected as blank
    vae.decoder.conv_out.weight.data.mul_(8)
    config = RendererConfig(steps=1, batch=1, lr=1e-3, layers=1, heads=1, clip_width=32, clip_layers=1)
    return build_pipeline(config, vae, ["a cat on a green field", "a red car"])


def save_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """`tiny_sd3`, saved to `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = tiny_sd3()
    pipeline.save_pretrained(folder)
    return folder
