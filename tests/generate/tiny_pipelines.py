"""Pipelines of diffusers' real classes with random weights, which draw a few hundred pixels in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import processors
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from tests.models.tiny_chat import TEXT, byte_tokenizer

WIDTH = int(TEXT["hidden_size"])


def _kl(channels: int = 4) -> AutoencoderKL:
    """Sixteen pixels a side become two."""
    blocks = 4
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def _text(config_class: Any, model_class: Any, vocabulary: int) -> Any:
    return model_class(config_class(vocab_size=vocabulary, pad_token_id=0, **TEXT)).eval()


def qwen_image() -> Any:
    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = Qwen2_5_VLConfig(
        vision_config={"depth": 1, "num_heads": 2, "patch_size": 4, "hidden_size": 16, "out_hidden_size": WIDTH},
        text_config={"vocab_size": len(tokenizer), **text, "rope_parameters": rope},
    )
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    # The words before the prompt, in tokens of one byte.
    pipeline.prompt_template_encode_start_idx = len(pipeline.prompt_template_encode.partition("{}")[0])
    return pipeline


def z_image() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_kl(),
        text_encoder=_text(Qwen3Config, Qwen3Model, len(tokenizer)),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[600, 16, 16],
        ),
    )


def sana() -> Any:
    tokenizer = byte_tokenizer()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=_text(Gemma2Config, Gemma2Model, len(tokenizer)),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=WIDTH,
            sample_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def pixart() -> Any:
    tokenizer = byte_tokenizer()
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(t5).eval(),
        vae=_kl(),
        transformer=PixArtTransformer2DModel(
            sample_size=4,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def cogview4() -> Any:
    tokenizer = byte_tokenizer()
    start = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = start  # as GLM's own: the empty negative prompt has a token
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=_text(GlmConfig, GlmModel, len(tokenizer)),
        vae=_kl(),
        transformer=CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=4,
            text_embed_dim=WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(16, 16),
            sample_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


def lumina2() -> Any:
    tokenizer = byte_tokenizer()
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(600, 16, 16),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_kl(),
        text_encoder=_text(Gemma2Config, Gemma2Model, len(tokenizer)),
        tokenizer=tokenizer,
    )


def with_tiny_autoencoder() -> Any:
    """Z-Image with TAESD, which is deterministic, in place of its own autoencoder."""
    pipeline = z_image()
    pipeline.vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    return pipeline


PIPELINES: dict[str, Callable[[], Any]] = {
    "QwenImagePipeline": qwen_image,
    "ZImagePipeline": z_image,
    "SanaPipeline": sana,
    "PixArtSigmaPipeline": pixart,
    "CogView4Pipeline": cogview4,
    "Lumina2Pipeline": lumina2,
    "ZImagePipeline with TAESD": with_tiny_autoencoder,
}


def tiny_pipeline(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PIPELINES[name]()
