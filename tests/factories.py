"""Tiny models with random weights, made in milliseconds, for tests in which nothing has to be known."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM

SPECIAL_TOKENS = 10  # ids 0 to 9, as in the official tokenizer of 2025-06-21
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEMPLATE_WORDS = ["query", "describe", "short", "normal", "long", "detect", "point"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, behind the special tokens: any text encodes, nothing is trained."""
    names = ["<|endoftext|>", *[f"<|md_reserved_{i}|>" for i in range(SPECIAL_TOKENS - 1)]]
    vocabulary = {token: i for i, token in enumerate([*names, *TEMPLATE_WORDS, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=names[0], bos_token=names[0])


def tiny_config(**changes: Any) -> MoondreamConfig:
    """A moondream of about 100,000 parameters: crop 16 in 4x4 patches, two layers, head size 64."""
    word = {name: SPECIAL_TOKENS + i for i, name in enumerate(TEMPLATE_WORDS)}
    fields: dict[str, Any] = {
        "text_config": {
            "vocab_size": SPECIAL_TOKENS + len(TEMPLATE_WORDS) + len(BYTES),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "max_position_embeddings": 512,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "crop_size": 16,
            "max_crops": 4,
            "overlap_margin": 1,
            "projection_hidden_size": 48,
            "projection_size": 64,
        },
        "region_config": {
            "hidden_size": 64,
            "intermediate_size": 32,
            "coord_feature_size": 8,
            "coord_output_size": 16,
            "size_feature_size": 8,
            "size_output_size": 32,
        },
        "templates": {
            "query": {"prefix": [1, word["query"], 2], "suffix": [3]},
            "caption": {length: [1, word["describe"], 2, word[length], 3] for length in ("short", "normal", "long")},
            "detect": {"prefix": [1, word["detect"], 2], "suffix": [3]},
            "point": {"prefix": [1, word["point"], 2], "suffix": [3]},
        },
        "tokenizer_id": "",
    }
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if isinstance(fields.get(name), dict) else value
    return MoondreamConfig(**fields)


def tiny_moondream(seed: int = 0, std: float = 0.2, **changes: Any) -> MoondreamForConditionalGeneration:
    """Random weights large enough that every input tells in the logits."""
    config = tiny_config(**changes)
    config.text_config.initializer_range = config.vision_config.initializer_range = std
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MoondreamForConditionalGeneration(config).eval()


def tiny_vlm(seed: int = 0, **changes: Any) -> MoondreamVLM:
    model = tiny_moondream(seed, **changes)
    return MoondreamVLM(model, MoondreamProcessor(model.config, tokenizer=tiny_tokenizer()), "tiny")
