"""Language models and Stable Diffusion 3.5 of the published sizes, for simulations on fake tensors (`memory.py`).

    vlm = build("vikhyatk/moondream2", torch.bfloat16, layers=24)
    denoiser = sd3(layers=38, large=True, nf4=False)

Configurations are the released ones but for the number of layers, and weights are of whatever mode is active. A tower
has two layers where `ALL_LAYERS[0]` is False, but for models of transformers, whose towers are complete.
"""

from __future__ import annotations

from typing import Any

import checkout  # noqa: F401
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from fake_gpu import four_bits  # tests/bench
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tests.factories import tiny_tokenizer
from tests.models.full_size import full_size
from vlm_detect.models.base import VLM
from vlm_detect.models.generic.published import PUBLISHED
from vlm_detect.models.moondream import MoondreamConfig, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.nano import nano_path
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava import TinyLlavaConfig
from vlm_detect.models.tinyllava.configuration import RELEASE
from vlm_detect.models.tinyllava.family import TinyLlavaVLM
from vlm_detect.models.tinyllava.processing import make_processor
from vlm_detect.train.lora import select_targets

LAYERS = {"moondream": 24, "tinyllava": 32, "sd3": 38}  # of the language models and the large denoiser
TOWER_LAYERS = 27
ALL_LAYERS = [False]


def build(name: str, dtype: torch.dtype, layers: int, *, nf4: bool = False) -> VLM:
    vlm: VLM
    if name in PUBLISHED:
        vlm = full_size(name, layers=layers, device="cpu", dtype=dtype, attn_implementation="sdpa")
    elif name == TINYLLAVA_ID:
        config = TinyLlavaConfig.from_dict({**RELEASE})
        with _disable_current_modes():
            processor = make_processor(config, AutoTokenizer.from_pretrained(nano_path("tinyllava")))
        config.image_token_index = processor.image_token_id
        shorten(config, layers)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        vlm = TinyLlavaVLM(model.eval(), processor, name)
        with _disable_current_modes():
            assert vlm.levels is not None  # found here: fake tensors have no pixels to try
    else:
        config = MoondreamConfig()
        shorten(config, layers)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        vlm = MoondreamVLM(model.eval(), MoondreamProcessor(config, tokenizer=tiny_tokenizer()), name)
    with _disable_current_modes():
        _ = vlm.image_cost
    if nf4:
        four_bits(vlm.model, set(select_targets(vlm.model, "all-linear")))
    return vlm


def shorten(config: Any, layers: int) -> None:
    config.text_config.num_hidden_layers = layers
    if not ALL_LAYERS[0]:
        config.vision_config.num_hidden_layers = 2


def layers_of(name: str) -> int:
    """How many layers the language model has."""
    if name in PUBLISHED:
        return int(PUBLISHED[name].make_config().get_text_config().num_hidden_layers)
    return LAYERS["tinyllava" if name == TINYLLAVA_ID else "moondream"]


def tower_bytes(name: str, dtype: torch.dtype) -> float:
    """The weights of the layers that a short tower lacks."""
    if ALL_LAYERS[0] or name in PUBLISHED:
        return 0
    vlm = build(name, dtype, 1)
    layer = next(
        part for path, part in vlm.model.named_modules() if path.endswith(("vision.blocks.0", "encoder.layers.0"))
    )
    size = sum(parameter.nbytes for parameter in layer.parameters())
    return float((TOWER_LAYERS - 2) * size)


def sd3(layers: int, *, large: bool, nf4: bool) -> Any:
    heads = 38 if large else 24
    model = SD3Transformer2DModel(
        sample_size=128,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=4096,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=2048,
        pos_embed_max_size=192 if large else 384,
        qk_norm="rms_norm",
        dual_attention_layers=() if large else tuple(range(13)),
    ).to(torch.bfloat16)
    if nf4:
        four_bits(model, {name for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    return model.eval()


def vae() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(torch.bfloat16)


def t5(*, nf4: bool) -> Any:
    config = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    model = T5EncoderModel(config).to(torch.bfloat16)
    if nf4:
        four_bits(model, {name for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    return model


def clip(width: int, layers: int) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = CLIPTextConfig(**sizes, projection_dim=width, num_attention_heads=width // 64)
    return CLIPTextModelWithProjection(config).to(torch.bfloat16)
