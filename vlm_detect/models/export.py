"""Export a run directory to formats that other tools read.

    vlm-detect export runs/moondream_lora OUT --to adapter     # the PEFT adapter and its processor, without checkpoints
    vlm-detect export runs/moondream_lora OUT --to merged      # one model folder: load it by from_pretrained or --model
    vlm-detect export runs/moondream_lora OUT --to official    # for moondream's own code and desktop tools
    vlm-detect export runs/tinyllava_lora OUT --to official    # ... and TinyLLaVA_Factory's
    vlm-detect export runs/moondream_lora OUT --to mlx         # for mlx-vlm on Apple's chips
    vlm-detect export runs/moondream_lora OUT --to variant     # the official LoRA file, for adapters that fit it

A merge is made in float32 and rounded once to the stored dtype; tensors without a LoRA keep their bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from vlm_detect.config import make_readable
from vlm_detect.errors import UserError
from vlm_detect.models.expert_tokens import FILE as EXPERT_TOKENS_FILE
from vlm_detect.models.moondream.variant import has_projection
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.tinyllava.checkpoint import is_factory_folder

Target = Literal["adapter", "merged", "official", "variant", "mlx"]

# Files that the detector reads in addition to the weights.
_RUN_FILES = ("calibration.json", "fusion.json", "head.safetensors", "measures.json")
# What makes an adapter: PEFT's files, the processor's, and what the detector reads next to them.
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "calibration.json",
    "chat_template.jinja",
    "config.json",
    "expert_tokens.json",
    "fusion.json",
    "head.safetensors",
    "measures.json",
    "preprocessor_config.json",
    "processor_config.json",
    "run.json",
    "README.md",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def export(run: str, target: Target, out: Path) -> None:
    """Write `run` to the folder `out` in the format `target`; UserError if `out` is not empty."""
    with new_folder(out):
        _export(run, target, out)


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """`out` is absent or empty before, `UserError` otherwise; and absent again after an error in between."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: give a new folder")
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _export(run: str, target: Target, out: Path) -> None:
    is_adapter = (Path(run) / "adapter_config.json").is_file() or is_factory_folder(run)
    is_whole = not is_adapter and all((Path(run) / name).is_file() for name in ("run.json", "config.json"))
    if not is_adapter and not is_whole:
        raise UserError(f"{run}: no adapter_config.json; give the --output_dir of a finished recipe")
    if is_whole and target in ("adapter", "variant"):
        raise UserError(f"{run}: a model that was tuned in full has no adapter; use --to merged or official")
    if target == "adapter":
        copy_adapter(Path(run), out)
        return
    if (Path(run) / EXPERT_TOKENS_FILE).is_file():
        raise UserError(
            f"{run}: has tokens of an expert CNN ({EXPERT_TOKENS_FILE}), which no layout but its adapter's has a place "
            "for; use --to adapter"
        )
    vlm = load_vlm(run, dtype="stored", device="cpu")
    if target == "variant":
        vlm.save_variant(out)
        return
    if isinstance(vlm.model, PeftModel):
        vlm.model = merge(vlm.model)
    if target in ("official", "mlx"):
        save = vlm.save_official if target == "official" else vlm.save_mlx
        save(out)
        make_readable(*out.glob("*.safetensors"))
        return
    vlm.model.save_pretrained(out)
    make_readable(*out.glob("*.safetensors"))
    vlm.processor.save_pretrained(out)
    for name in _RUN_FILES:
        if (Path(run) / name).is_file():
            shutil.copy(Path(run) / name, out)


def copy_adapter(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in _ADAPTER_FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)


@torch.no_grad()
def merge(model: PeftModel) -> PreTrainedModel:
    """Fold every LoRA layer into its base weight, in float32, one layer at a time; gives the base model."""
    if has_projection(model):
        raise UserError(
            "this official variant has a LoRA on attn.proj that reads the block's input, which no weight can hold: "
            "it cannot be merged; use it as --adapter"
        )
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtype = next(base.parameters()).dtype
            module.float()
            module.merge()
            base.to(dtype)
        elif isinstance(module, ModulesToSaveWrapper):  # trained in full, and perhaps in float32
            dtype = next(module.original_module.parameters()).dtype
            module.to(dtype)
    return model.unload()
