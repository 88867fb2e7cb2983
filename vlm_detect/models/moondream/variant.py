"""A LoRA in the official variant format, `final.pt`, which moondream's own code downloads and applies.

    text.blocks.N.{attn.qkv, attn.proj, mlp.fc1, mlp.fc2}.{A (r, in), B (out, r)}, delta = B(A(x)), no alpha / r

All four modules of all layers must be there. For `attn.proj` the official code feeds A the layer-normed input of the
block instead of the attention output. An ordinary LoRA on `proj` would mean something else there: such adapters are
refused, and zeros are written for `proj`. A variant that was trained by the official code is loaded with that meaning:
its three other LoRAs as PEFT's, that of `proj` as a small module of the attention, which no merge can fold away.
Source: vikhyat/moondream `lora.py`, `text.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from vlm_detect.errors import UserError, first_line
from vlm_detect.models.moondream.configuration import MoondreamConfig
from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration
from vlm_detect.models.moondream.text import MoondreamTextAttention

FILE = "final.pt"
# What the names are while the official code trains, and in the file.
_TRAINING_NAMES = (
    ("text_model.transformer.h", "text.blocks"),
    (".mixer", ".attn"),
    (".out_proj", ".proj"),
    (".Wqkv", ".qkv"),
    (".parametrizations.weight.0", ""),
)
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
    for layer, block in enumerate(model.get_base_model().model.text.blocks):
        if block.attn.variant is not None:
            a, b = (part.weight.detach().cpu() for part in block.attn.variant)
            tensors |= {f"text.blocks.{layer}.attn.proj.A": a, f"text.blocks.{layer}.attn.proj.B": b}
    for name, (outputs, inputs) in _target_shapes(model.get_base_model().config).items():
        tensors.setdefault(f"{name}.A", torch.zeros(rank, inputs))
        tensors.setdefault(f"{name}.B", torch.zeros(outputs, rank))
    return dict(sorted(tensors.items()))


def is_variant(path: str | Path) -> bool:
    """Whether `path` is a variant's file, or a folder that holds one."""
    return Path(path).is_file() if Path(path).suffix == ".pt" else (Path(path) / FILE).is_file()


def load_variant(model: Any, path: str | Path) -> PeftModel:
    """`model`, a moondream, with the variant in `path` (its file, or the folder of it); nothing in it is executed.

    Raises UserError where it cannot be read or does not fit.
    """
    if not isinstance(model, MoondreamForConditionalGeneration):
        raise UserError(f"adapter {path}: an official variant fits a moondream2 alone")
    tensors = _read_variant(Path(path) if Path(path).suffix == ".pt" else Path(path) / FILE)
    shapes = _target_shapes(model.config)
    wanted = {f"{name}.{matrix}" for name in shapes for matrix in "AB"}
    if differing := sorted(wanted ^ tensors.keys()):
        raise UserError(f"adapter {path} does not fit this model: {differing[0]} is missing or unknown")
    ranks = {tensors[f"{name}.A"].shape[0] for name in shapes}
    for name, (outputs, inputs) in shapes.items():
        rank = tensors[f"{name}.A"].shape[0]
        found = tuple(tensors[f"{name}.A"].shape), tuple(tensors[f"{name}.B"].shape)
        if found != ((rank, inputs), (outputs, rank)) or len(ranks) > 1:
            raise UserError(f"adapter {path} does not fit this model: {name} has A and B of {found}")
    (rank,) = ranks
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGET.pattern, task_type="CAUSAL_LM")
    config.base_model_name_or_path = model.name_or_path
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, module in model.named_modules():
            if target := _TARGET.match(name):
                module.lora_A["default"].weight.copy_(tensors[f"text.{target[1]}.A"])
                module.lora_B["default"].weight.copy_(tensors[f"text.{target[1]}.B"])
        for layer, block in enumerate(model.model.text.blocks):
            attention: Any = block.attn
            a, b = (tensors[f"text.blocks.{layer}.attn.proj.{matrix}"] for matrix in "AB")
            if bool(b.any()):
                attention.variant = _projection(a, b).to(model.device)
    return tuned.eval()


def has_projection(model: nn.Module) -> bool:
    """Whether a variant was loaded whose LoRA on `attn.proj` is not zero: it is no part of any base weight."""
    return any(isinstance(module, MoondreamTextAttention) and module.variant is not None for module in model.modules())


def _projection(a: torch.Tensor, b: torch.Tensor) -> nn.Sequential:
    """B(A(x)), frozen, in float32 as a LoRA's."""

    def linear(weight: torch.Tensor) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)
        return layer

    return nn.Sequential(linear(a), linear(b))


def _read_variant(file: Path) -> dict[str, torch.Tensor]:
    """The tensors under their final names; files of the official training have others."""
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler and zip reader do
        reason = first_line(error)
        raise UserError(f"adapter {file} cannot be read safely: {reason}") from error
    if not isinstance(stored, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in stored.values()):
        raise UserError(f"adapter {file} is no official variant: it holds other things than tensors")
    tensors = {}
    for name, tensor in stored.items():
        for theirs, final in _TRAINING_NAMES:
            name = name.replace(theirs, final)
        tensors[name.removeprefix("model.")] = tensor
    return tensors


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
