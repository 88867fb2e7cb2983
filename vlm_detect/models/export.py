"""From a run directory to what other tools read.

    vlm-detect export runs/moondream_lora --to adapter  OUT    # the PEFT adapter and its processor, without checkpoints
    vlm-detect export runs/moondream_lora --to merged   OUT    # one model folder: load it by from_pretrained or --model
    vlm-detect export runs/moondream_lora --to official OUT    # what moondream's own code and its desktop tools read
    vlm-detect export runs/moondream_lora --to variant  OUT    # the official LoRA file, for adapters that it can hold

A merge is made in float32 and rounded once to the stored dtype; tensors without a LoRA keep their bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ..errors import UserError
from .moondream.variant import save_variant
from .registry import load_vlm

Target = Literal["adapter", "merged", "official", "variant"]
TARGETS: tuple[Target, ...] = get_args(Target)

# What makes an adapter: PEFT's files, the processor's, and what the detector reads beside them.
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "calibration.json",
    "config.json",
    "preprocessor_config.json",
    "run.json",
    "README.md",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def export(run: str, target: Target, out: Path) -> None:
    """Write `run` to the folder `out` in the form `target`; UserError where `out` holds something already."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give a new folder")
    if not (Path(run) / "adapter_config.json").is_file():
        raise UserError(f"{run}: no adapter_config.json there; give the --output_dir of a finished recipe")
    if target == "adapter":
        copy_adapter(Path(run), out)
        return
    vlm = load_vlm(run, dtype="stored", device="cpu")
    if target == "variant":
        save_variant(vlm.model, out)
        return
    vlm.model = merge(vlm.model)
    if target == "official":
        vlm.model.save_official(out)
        return
    vlm.model.save_pretrained(out)
    vlm.processor.save_pretrained(out)
    if (calibration := Path(run) / "calibration.json").is_file():
        shutil.copy(calibration, out)


def copy_adapter(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in _ADAPTER_FILES:
        if (run / name).is_file():
            shutil.copy(run / name, out)


@torch.no_grad()
def merge(model: PeftModel) -> PreTrainedModel:
    """Fold every LoRA layer into its base weight, in float32, one layer at a time; gives the base model."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtype = base.weight.dtype
            module.float()
            module.merge()
            base.to(dtype)
    return model.unload()
