"""FLOPs of a moondream by formula, and a small geometry in which tower and decoder cost what they cost in the real one.

A multiply-add counts as two. Norms, biases, activations and embeddings are left out: below a percent at real size.
"""

from __future__ import annotations

from transformers import LlavaConfig

from vlm_detect.models.moondream import MoondreamConfig

# Of the released model: 6.7 TFLOP in the tower for ten crops against 4.0 for a LoRA step over 780 tokens.
REAL_TOWER_TO_STEP = 6.7 / 4.0
STEP_TOKENS = 780


def crops_read(crops: int) -> int:
    """How many of an image's crops our tower reads: of two, which are one image twice, the one."""
    return 1 if crops == 2 else crops


def tower_flops(config: MoondreamConfig, crops: int) -> float:
    """The frozen tower, forward, for `crops` crops read."""
    v = config.vision_config
    tokens = v.num_image_tokens
    linear = 2 * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
    attention = 4 * tokens * v.hidden_size
    return crops * tokens * v.num_hidden_layers * (linear + attention)


def siglip_flops(config: LlavaConfig) -> float:
    """The tower of a LLaVA, forward, up to the layer that its features are of; no class token."""
    v = config.vision_config
    tokens = (v.image_size // v.patch_size) ** 2
    layers = v.num_hidden_layers + 1 + config.vision_feature_layer  # -2: all but the last
    linear = 2 * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
    attention = 4 * tokens * v.hidden_size
    return tokens * layers * (linear + attention)


def text_flops(config: MoondreamConfig, new_tokens: int, context: int, logits: int = 1) -> float:
    """The decoder, forward, for `new_tokens` that see `context` tokens each, with logits at `logits` positions."""
    t = config.text_config
    linear = 2 * (4 * t.hidden_size**2 + 2 * t.hidden_size * t.intermediate_size)
    attention = 4 * context * t.hidden_size
    return new_tokens * t.num_hidden_layers * (linear + attention) + logits * 2 * t.hidden_size * t.vocab_size


def lora_step_flops(config: MoondreamConfig, tokens: int = STEP_TOKENS) -> float:
    """Forward and the backward of activations through a frozen decoder: twice the forward."""
    return 2 * text_flops(config, tokens, tokens)


def bench_config(vocab_size: int = 2048) -> MoondreamConfig:
    """The official crops, grid and prefix with narrow layers; `flop_ratio` is within 10 % of the real one."""
    return MoondreamConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
        },
        vision_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "projection_hidden_size": 512,
            "projection_size": 512,
        },
        region_config={"hidden_size": 512, "intermediate_size": 64},
        templates={
            "query": {"prefix": [1, 20, 2], "suffix": [3]},
            "caption": {"normal": [1, 21, 2, 22, 3]},
        },
        tokenizer_id="",
    )


def flop_ratio(config: MoondreamConfig, crops: int = 10) -> float:
    """Tower at `crops` crops to one LoRA step."""
    return tower_flops(config, crops) / lora_step_flops(config)
