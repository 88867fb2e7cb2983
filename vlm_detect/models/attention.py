"""The attention implementation of a model: `eager`, `sdpa`, `flex_attention` or a flash kernel.

transformers has no public way to read it from a config. Its guide for models reads this attribute, and so do its own
models; nothing else of the package does.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested


def attention_of(config: Any) -> str | None:
    """The implementation that a model with this config was loaded with, or was set to."""
    return config._attn_implementation


def request_attention(config: Any, implementation: str | None) -> None:
    """What a model that is made from this config will compute with."""
    config._attn_implementation = implementation


def masked_attention(requested: str | None) -> str | None:
    """The implementation for a decoder: sdpa where flash is asked for.

    Flash kernels know full and causal attention. An image prefix that attends both ways before a causal rest, and
    packed questions, blind to each other, are masks.
    """
    flash = requested is not None and is_flash_attention_requested(requested_attention_implementation=requested)
    return "sdpa" if flash else requested


def keep_masks(model: PreTrainedModel) -> None:
    """Leave flash attention to the tower of a loaded model: its decoder computes with `masked_attention`."""
    text = model.config.get_text_config()
    if (masked := masked_attention(attention_of(text))) != attention_of(text):
        name = next((name for name in model.config.sub_configs if getattr(model.config, name) is text), None)
        model.set_attn_implementation({name: masked} if name else masked)
