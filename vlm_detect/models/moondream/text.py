"""The decoder: one LayerNorm, then attention and MLP side by side, rotary on the first half of every head.

Source: vikhyat/moondream `text.py`, `rope.py`. Rotary pairs are (i, i + rotary_dim/2); the official code interleaves
real and imaginary parts of both queries and keys in the output, which does not change any score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_detect.models.attention import attention_of, masked_attention, request_attention
from vlm_detect.models.moondream.configuration import MoondreamTextConfig
from vlm_detect.models.moondream.layers import MoondreamMLP, MoondreamPreTrainedModel, attend


def rotary_table(config: MoondreamTextConfig, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for positions (B, T): each (B, 1, T, rotary_dim / 2), float32 whatever the model's dtype.

    Computed on the fly: a non-persistent buffer would be left uninitialised by loading on the meta device.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = 1.0 / (config.rope_theta ** (exponents / config.rotary_dim))
    angles = position_ids[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the first rotary_dim dimensions of (B, H, T, head_dim) in float32; the rest pass through."""
    cos, sin = table
    half = cos.shape[-1]
    real, imaginary, rest = states.split([half, half, states.shape[-1] - 2 * half], dim=-1)
    real, imaginary = real.float(), imaginary.float()
    turned = torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return torch.cat([turned.to(states.dtype), rest], dim=-1)


class MoondreamTextAttention(nn.Module):
    def __init__(self, config: MoondreamTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        self.widths = [config.num_attention_heads * self.head_dim, *[config.num_key_value_heads * self.head_dim] * 2]
        self.qkv = nn.Linear(config.hidden_size, sum(self.widths))
        self.proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size)
        self.variant: nn.Module | None = None  # of an official LoRA variant: what it adds, read from this layer's input

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        batch, length, _ = hidden_states.shape
        query, key, value = (
            states.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for states in self.qkv(hidden_states).split(self.widths, dim=-1)
        )
        query, key = rotate(query, rotary), rotate(key, rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, _ = attend(
            self,
            attention_of(self.config),
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        projected = self.proj(output.reshape(batch, length, -1))
        if self.variant is None:
            return projected
        return projected + self.variant(hidden_states.float()).to(projected.dtype)


class MoondreamTextBlock(GradientCheckpointingLayer):
    def __init__(self, config: MoondreamTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = MoondreamTextAttention(config, layer_idx)
        self.mlp = MoondreamMLP(config.hidden_size, config.intermediate_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        normed = self.ln(hidden_states)
        attended = self.attn(normed, attention_mask, rotary, past_key_values=past_key_values, **kwargs)
        return hidden_states + attended + self.mlp(normed)


class MoondreamText(MoondreamPreTrainedModel):
    """Embeddings (B, T, D) to normed hidden states; `wte` and `lm_head` are untied and `lm_head` has a bias."""

    config_class = MoondreamTextConfig
    input_modalities = ("text",)

    def __init__(self, config: MoondreamTextConfig) -> None:
        request_attention(config, masked_attention(attention_of(config)))
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(MoondreamTextBlock(config, i) for i in range(config.num_hidden_layers))
        self.post_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def set_attn_implementation(self, attn_implementation: str, *args: Any, **kwargs: Any) -> None:
        super().set_attn_implementation(masked_attention(attn_implementation), *args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        return super().get_correct_attn_implementation(masked_attention(requested_attention), is_init_check)

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        rotary = rotary_table(self.config, position_ids)
        hidden_states = inputs_embeds
        for block in self.blocks:
            hidden_states = block(hidden_states, attention_mask, rotary, past_key_values=past_key_values, **kwargs)
        return hidden_states  # before post_ln: the region head reads these
