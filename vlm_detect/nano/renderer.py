"""The nano SD 3.5: a ``StableDiffusion3Pipeline`` with small parts, trained as SD 3 was.

Flow matching with logit-normal times and a velocity target (Esser et al. 2024, arXiv 2403.03206), no caption for a
tenth of the samples, as classifier-free guidance requires, and a moving average of the weights. The text encoders start
from random weights and are trained with the transformer. Latents are computed once, by a frozen autoencoder.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.nano.autoencoder import encode_all
from vlm_detect.nano.captions import LENGTHS, Facts, caption, read_facts
from vlm_detect.nano.config import RendererConfig
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.prompt_encoders import build_clip, build_t5, train_clip_tokenizer, train_t5_tokenizer
from vlm_detect.nano.training import train
from vlm_detect.nano.weights import forget_paths, halve

TRAINED_PARTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def build_pipeline(config: RendererConfig, vae: AutoencoderKL, captions: list[str]) -> StableDiffusion3Pipeline:
    """An untrained pipeline around ``vae``, with tokenizers made from ``captions``."""
    tokenizer = train_clip_tokenizer(captions, config.clip_tokens)
    tokenizer_3 = train_t5_tokenizer(captions, config.t5_tokens)
    width = config.heads * config.head_dim
    transformer = SD3Transformer2DModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        patch_size=config.patch_size,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=config.layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=2 * config.clip_width,
        caption_projection_dim=width,
        pooled_projection_dim=2 * config.clip_width,
        pos_embed_max_size=16,
        qk_norm="rms_norm",  # as in SD 3.5
    )
    _start_as_identity(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=config.shift),
        vae=vae,
        text_encoder=build_clip(tokenizer, config.clip_width, config.clip_layers, "quick_gelu"),
        tokenizer=tokenizer,
        text_encoder_2=build_clip(tokenizer, config.clip_width, config.clip_layers, "gelu"),
        tokenizer_2=tokenizer,
        text_encoder_3=build_t5(tokenizer_3, 2 * config.clip_width, config.t5_layers),
        tokenizer_3=tokenizer_3,
    )


def _start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Zero every modulation and the output (adaLN-Zero, arXiv 2212.09748): a deep stack then learns from step one."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    for linear in (transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def flow_matching_loss(
    pipeline: StableDiffusion3Pipeline, latents: Tensor, captions: list[str], generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity ``noise - latents``, for scaled ``latents`` (B, C, h, w) and captions."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=captions,
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=pipeline.tokenizer_3.model_max_length,
    )
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    time = torch.sigmoid(torch.randn(len(latents), generator=generator)).to(latents.device)
    time_b111 = time[:, None, None, None]
    velocity = pipeline.transformer(
        hidden_states=(1 - time_b111) * latents + time_b111 * noise,
        timestep=time * pipeline.scheduler.config.num_train_timesteps,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
    ).sample
    return (velocity.float() - (noise - latents)).pow(2).mean()


def sample_caption(facts: Facts, rng: Random) -> str:
    """One caption in the mix of lengths that the renderer learns."""
    return caption(facts, rng.choices(LENGTHS, (0.3, 0.5, 0.2))[0], rng)


def train_renderer(
    config: RendererConfig,
    start: AutoencoderKL | StableDiffusion3Pipeline,
    training: Photos,
    folder: Path,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[StableDiffusion3Pipeline, dict[str, float]]:
    """Train (or finish training) the pipeline and export it in fp16 to ``folder/sd35``; returns it with its figures.

    ``start`` is an autoencoder, to which untrained parts are added, or a complete pipeline to continue from.
    """
    rng = Random(seed)
    facts = [
        read_facts(image, CIFAR_CLASSES[label]) for image, label in zip(training.images, training.labels, strict=True)
    ]
    torch.manual_seed(seed)
    if isinstance(start, AutoencoderKL):
        pipeline = build_pipeline(config, start, [sample_caption(f, rng) for f in facts[:20000]])
    else:
        pipeline = start
    pipeline.to(device)
    vae = pipeline.vae.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    latents = _scaled_latents(vae, training.images, folder / "latents.pt")

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(latents), (config.batch,), generator=generator)
        words = Random(int(torch.randint(2**62, (1,), generator=generator)))
        captions = [
            "" if words.random() < config.unconditional else sample_caption(facts[row % len(facts)], words)
            for row in rows.tolist()
        ]
        return {"loss": flow_matching_loss(pipeline, latents[rows].to(device), captions, generator)}

    parts = nn.ModuleDict({name: getattr(pipeline, name) for name in TRAINED_PARTS})
    figures = train("renderer", parts, loss_of, config, folder=folder, seed=seed)
    export(pipeline, folder / "sd35")
    return pipeline, figures


def _scaled_latents(vae: AutoencoderKL, images: np.ndarray, cache: Path) -> Tensor:
    """Scaled latents of the images and then of their mirror images, (2N, 16, h, w); cached, because they take minutes.

    The caption rules do not distinguish left and right, so a mirrored photograph keeps its captions.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encode_all(vae, np.concatenate([images, images[:, :, ::-1]])).half(), cache)
    return (torch.load(cache, weights_only=True).float() - vae.config.shift_factor) * vae.config.scaling_factor


def export(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Save the pipeline in a form that ``StableDiffusion3Pipeline.from_pretrained(folder)`` loads."""
    pipeline.save_pretrained(folder)
    halve(folder)
    forget_paths(folder)


@torch.inference_mode()
def render(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], *, seed: int, batch: int = 100, **options: Any
) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8, one per prompt; image i comes from noise of seed ``seed + i`` for any batch size."""
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        limit = pipeline.tokenizer_3.model_max_length
        made = pipeline(part, generator=generators, output_type="np", max_sequence_length=limit, **options)
        images.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(images)
