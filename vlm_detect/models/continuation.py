"""An image's prefix in the KV cache, and a forward over what follows it.

cache = read_prefix(vlm, embeds)                                   # prefilled once
behind = Cache(layers=[AfterPrefix(layer.keys, layer.values) for layer in cache.layers])
    forward(vlm, ids, positions, mask, behind, logits_at)              # which neither copies nor changes the prefix
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from vlm_detect.models.attention import attention_of
from vlm_detect.models.base import VLM


class AfterPrefix(DynamicLayer):
    """A layer of a KV cache that stores what follows a prefix; the prefix, which others use too, is read and not
    copied."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.prefix = keys, values  # (B, H, P, D)
        self.lazy_initialization(keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return torch.cat([self.prefix[0], keys], dim=2), torch.cat([self.prefix[1], values], dim=2)

    def get_seq_length(self) -> int:
        return int(self.prefix[0].shape[2]) + super().get_seq_length()


def read_prefix(vlm: VLM, embeds: Any, new_layer: Any = DynamicLayer) -> Cache:
    """The KV cache of image embeddings (B, N, D), those of images with prefixes of equal length."""
    cache = Cache(layer_class_to_replicate=new_layer)
    vlm.model(**vlm.prefix_inputs(embeds), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def forward(
    vlm: VLM,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    cache: Cache,
    logits_at: torch.Tensor | None,
    **numbers: torch.Tensor,
) -> Any:
    """The model's outputs for packed tokens (B, T) behind what is in the cache.

    `mask` (B, 1, T, cached + T) bool is True where a token may attend. Logits are computed at all tokens where
    `logits_at` is None.
    """
    return vlm.model(
        input_ids=ids,
        position_ids=vlm.position_ids(positions),
        attention_mask=_as_implemented(vlm, mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=0 if logits_at is None else logits_at,
        **numbers,
    )


def _as_implemented(vlm: VLM, mask: torch.Tensor) -> torch.Tensor:
    """Eager and flex attention add their mask to the scores; the others take a bool one."""
    if attention_of(vlm.model.config) not in ("eager", "flex_attention"):
        return mask
    dtype = vlm.model.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
