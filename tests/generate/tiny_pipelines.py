"""Pipelines of diffusers' real classes with random weights, which draw a few hundred pixels in milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from tokenizers import processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.data.factories import tiny_sd3
from tests.models.tiny_chat import TEXT, byte_tokenizer
from vlm_detect.models.generic.processors import absent_parts, image_only
from vlm_detect.nano.prompt_encoders import build_clip, train_clip_tokenizer

WIDTH = int(TEXT["hidden_size"])
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 1, "num_heads": 2, "pad_token_id": 0}
CLIP_LENGTH = 24


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


def sd3() -> Any:
    """With weights so large that its prompt tells, whose way starts at zero."""
    pipeline = tiny_sd3()
    for weight in pipeline.transformer.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return pipeline


def qwen_image(cls: Any = QwenImagePipeline) -> Any:
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(*marks)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    tower = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "hidden_size": 16}
    names = ("vision_start", "vision_end", "image", "video")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(marks[2:]), strict=True))
    config = Qwen2_5_VLConfig(
        vision_config={**tower, "window_size": 16, "fullatt_block_indexes": [0], "out_hidden_size": WIDTH},
        text_config={"vocab_size": len(tokenizer), **text, "rope_parameters": rope},
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    parts = {}
    if cls is not QwenImagePipeline:
        image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=24 * 24)
        absent = absent_parts(Qwen2VLProcessor)
        parts = {"processor": image_only(Qwen2VLProcessor)(image_processor, tokenizer, **absent)}
    pipeline = cls(
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
        **parts,
    )
    # The words before the prompt, in tokens of one byte.
    before = tokenizer(pipeline.prompt_template_encode.partition("{}")[0])["input_ids"]
    pipeline.prompt_template_encode_start_idx = len(before)
    return pipeline


def qwen_image_edit() -> Any:
    return qwen_image(QwenImageEditPipeline)


def qwen_image_edit_plus() -> Any:
    return qwen_image(QwenImageEditPlusPipeline)


def _clip_tokenizer() -> Any:
    return train_clip_tokenizer(["a cat on a green field", "a red car", "two cats on a sofa"], CLIP_LENGTH)


def flux(cls: Any = FluxPipeline) -> Any:
    clip, tokenizer = _clip_tokenizer(), byte_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_kl(),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5)).eval(),
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def flux_kontext() -> Any:
    return flux(FluxKontextPipeline)


def _flux2(cls: Any, tokenizer: Any, text_encoder: Any, *, guidance_embeds: bool) -> Any:
    blocks = 4
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            block_out_channels=(8,) * blocks, layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32
        ),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,  # of three layers of the language model
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
    )


def flux2() -> Any:
    tokenizer = byte_tokenizer("[IMG]")
    tokenizer.chat_template = (  # without the system's words, which would fill the few tokens
        "{% for m in messages if m['role'] == 'user' %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
        "{% endfor %}"
    )
    text = MistralConfig(vocab_size=len(tokenizer), pad_token_id=0, **TEXT | {"num_hidden_layers": 30})
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config=text,
        vision_config=PixtralVisionConfig(**tower, image_size=16, patch_size=4, head_dim=8),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    return _flux2(Flux2Pipeline, tokenizer, Mistral3ForConditionalGeneration(config), guidance_embeds=True)


def flux2_klein() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = Qwen3Config(vocab_size=len(tokenizer), pad_token_id=0, **TEXT | {"num_hidden_layers": 27})
    return _flux2(Flux2KleinPipeline, tokenizer, Qwen3ForCausalLM(config), guidance_embeds=False)


def hidream() -> Any:
    clip, tokenizer, llama = _clip_tokenizer(), byte_tokenizer(), byte_tokenizer()
    config = LlamaConfig(vocab_size=len(llama), pad_token_id=0, **TEXT)
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_kl(),
        text_encoder=build_clip(clip, WIDTH, 1, "quick_gelu").eval(),
        tokenizer=clip,
        text_encoder_2=build_clip(clip, WIDTH, 1, "gelu").eval(),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5)).eval(),
        tokenizer_3=tokenizer,
        text_encoder_4=LlamaForCausalLM(config).eval(),
        tokenizer_4=llama,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(128, 128),
            llama_layers=[0, 1],
            force_inference_output=True,
        ).eval(),
    )


def aura_flow() -> Any:
    tokenizer = byte_tokenizer()
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **T5)).eval(),
        vae=_kl(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def sdxl() -> Any:
    tokenizer = train_clip_tokenizer(["a cat on a green field", "a red car"], 16)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    return StableDiffusionXLPipeline(
        vae=_kl(),
        text_encoder=build_clip(tokenizer, 32, 1, "quick_gelu"),
        text_encoder_2=build_clip(tokenizer, 32, 1, "gelu"),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


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
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5)).eval(),
        vae=_kl(),
        transformer=PixArtTransformer2DModel(
            sample_size=4,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=WIDTH,
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
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusionXLPipeline": sdxl,
    "FluxPipeline": flux,
    "FluxKontextPipeline": flux_kontext,
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": flux2_klein,
    "QwenImagePipeline": qwen_image,
    "QwenImageEditPipeline": qwen_image_edit,
    "QwenImageEditPlusPipeline": qwen_image_edit_plus,
    "ZImagePipeline": z_image,
    "SanaPipeline": sana,
    "HiDreamImagePipeline": hidream,
    "Lumina2Pipeline": lumina2,
    "PixArtSigmaPipeline": pixart,
    "CogView4Pipeline": cogview4,
    "AuraFlowPipeline": aura_flow,
    "ZImagePipeline with TAESD": with_tiny_autoencoder,
}


@contextmanager
def small_references() -> Iterator[None]:
    """Qwen-Image-Edit scales what it edits to a megapixel: minutes on a CPU. Here to 64 x 64 pixels."""
    with ExitStack() as patches:
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint, pipeline_qwenimage_edit_plus):
            real = module.calculate_dimensions
            small = functools.partial(lambda real, area, ratio: real(64 * 64, ratio), real)
            patches.enter_context(mock.patch.object(module, "calculate_dimensions", small))
        yield


def tiny_pipeline(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PIPELINES[name]()
