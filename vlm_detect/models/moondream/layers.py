"""What the image tower and the decoder share: the fused-attention interface, the MLP, and the eager reference.

Module names are those of the official checkpoint, so that its keys are ours; every linear map is an `nn.Linear` that is
called as a module, so that peft and bitsandbytes can replace it. (In the official code the tower's attention calls
`F.linear` on `.weight`, and a LoRA wrapped around it changes nothing.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_detect.models.moondream.configuration import MoondreamConfig


class MoondreamPreTrainedModel(PreTrainedModel):
    """What the whole model, its tower and its decoder declare to transformers."""

    config_class: Any = MoondreamConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MoondreamTextBlock", "MoondreamVisionBlock"]  # noqa: RUF012  the base class's own form
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True  # in the tower; the decoder stays with sdpa, see `MoondreamText`
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would guess from the module's source; all attention here goes through `attend`

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.get_text_config().initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        for name in ("pos_emb", "coord_features", "size_features"):  # bare parameters of the tower and region head
            if (parameter := getattr(module, name, None)) is not None:
                nn.init.normal_(parameter, std=std if name == "pos_emb" else 1.0)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, the reference of every fused kernel.

    query is (B, H, T, D), key and value (B, H_kv, S, D); gives (B, T, H, D) and the weights (B, H, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module,
    implementation: str | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention through the implementation that the model was loaded with; shapes as in `eager_attention`."""
    interface: Any = ALL_ATTENTION_FUNCTIONS.get_interface(implementation or "eager", eager_attention)
    return interface(module, query, key, value, attention_mask, **kwargs)


class MoondreamMLP(nn.Module):
    """fc2(gelu_tanh(fc1(x)))."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states), approximate="tanh"))
