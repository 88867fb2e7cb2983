"""The attention that a model computes with: `eager`, `sdpa`, `flex_attention` or a flash kernel.

transformers has no public way to read it from a config. Its guide for models reads this attribute, and so do its own
models; nothing else of the package does.
"""

from __future__ import annotations

from typing import Any


def attention_of(config: Any) -> str | None:
    """The implementation that a model with this config was loaded with, or was set to."""
    return config._attn_implementation


def request_attention(config: Any, implementation: str | None) -> None:
    """What a model that is made from this config will compute with."""
    config._attn_implementation = implementation
