"""A LoRA in the official variant format, `final.pt`, which moondream's own code downloads and applies.

    text.blocks.N.{attn.qkv, attn.proj, mlp.fc1, mlp.fc2}.{A (r, in), B (out, r)}, delta = B(A(x)), no alpha / r

All four modules of all layers must be there. For `attn.proj` the official code feeds A the layer-normed input of the
block instead of the attention output, so an ordinary LoRA on `proj` would mean something else there: such adapters are
refused, and zeros are written for `proj`. Source: vikhyat/moondream `lora.py`, `text.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vlm_detect.errors import UserError
from vlm_detect.models.moondream.configuration import MoondreamConfig

FILE = "final.pt"
_TARGET = re.compile(r"model\.text\.(blocks\.\d+\.(?:attn\.qkv|mlp\.fc1|mlp\.fc2))$")


def variant_tensors(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors under their official names, float32, the scale folded into B.

    Raises UserError for an adapter that the format cannot hold exactly.
    """
    peft_config: Any = model.peft_config[adapter]
    if getattr(peft_config, "use_dora", False) or peft_config.bias != "none" or peft_config.modules_to_save:
        raise UserError(
            "the variant format holds plain LoRA only, no DoRA, biases or fully tuned modules: use --to merged"
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "lora_A") or adapter not in module.lora_A:
            continue
        target = _TARGET.match(name)
        if target is None:
            raise UserError(
                f"the variant format cannot hold the adapter's {name}: it knows attn.qkv, mlp.fc1 and mlp.fc2 of the "
                "text blocks; use --to merged or --to official"
            )
        tensors[f"text.{target[1]}.A"] = module.lora_A[adapter].weight.detach().float().cpu()
        tensors[f"text.{target[1]}.B"] = (
            module.lora_B[adapter].weight.detach().float() * module.scaling[adapter]
        ).cpu()
    rank = peft_config.r
    for name, (outputs, inputs) in _target_shapes(model.get_base_model().config).items():
        tensors.setdefault(f"{name}.A", torch.zeros(rank, inputs))
        tensors.setdefault(f"{name}.B", torch.zeros(outputs, rank))
    return dict(sorted(tensors.items()))


def _target_shapes(config: MoondreamConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer that a variant names."""
    text = config.text_config
    width, heads, key_heads = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    shapes = {
        "attn.qkv": ((heads + 2 * key_heads) * text.head_dim, width),
        "attn.proj": (width, heads * text.head_dim),
        "mlp.fc1": (text.intermediate_size, width),
        "mlp.fc2": (width, text.intermediate_size),
    }
    return {
        f"text.blocks.{layer}.{name}": shape
        for layer in range(text.num_hidden_layers)
        for name, shape in shapes.items()
    }


def save_variant(model: nn.Module, folder: Path) -> None:
    """Write `final.pt`. The official code reads a torch file there and nothing else; it holds tensors alone."""
    if not isinstance(model, PeftModel):
        raise UserError("a variant is a LoRA, and this model has none: give a run directory")
    tensors = variant_tensors(model)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / FILE)
