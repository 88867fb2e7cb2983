"""`vlm-detect doctor`: what this machine has, what is missing, what is cached, and which training configs fit.

    vlm-detect doctor
    vlm-detect doctor --model vikhyatk/moondream2 --config moondream_qlora_8gb

Memory is estimated from the model's real shapes on the meta device (`vlm_detect.train.memory`): nothing is downloaded
or loaded. Estimates exist for moondream and the LLaVA family.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vlm_detect.config import CONFIGS, find_config, versions
from vlm_detect.errors import UserError
from vlm_detect.extras import how_to_install
from vlm_detect.machine import cpu_cores, default_dtype, dtype_of
from vlm_detect.models.base import FAMILIES
from vlm_detect.models.moondream import MoondreamConfig
from vlm_detect.models.moondream.configuration import HUB_ID
from vlm_detect.models.registry import resolve_id
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava import TinyLlavaConfig
from vlm_detect.models.tinyllava.configuration import RELEASE
from vlm_detect.models.untrusted import build_untrusted, load_untrusted
from vlm_detect.train.examples import QuestionOptions
from vlm_detect.train.lora import LoraOptions
from vlm_detect.train.memory import Estimate, Step, estimate_memory
from vlm_detect.train.options import DataOptions, ModelOptions, TrainOptions

# What the optional parts need, by the extra that brings it.
EXTRAS = {
    "data": ["diffusers", "imagehash"],
    "train": ["tensorboard"],
    "quant": ["bitsandbytes"],
    "cnn": ["captum"],
    "eval": ["openai", "rouge_score"],
    "serve": ["fastapi", "uvicorn", "multipart", "prometheus_client", "c2pa"],
    "slurm": ["submitit"],
    "ray": ["ray"],
}
# What a recipe's config may say.
_KNOWN = {
    key
    for options in (ModelOptions, DataOptions, QuestionOptions, LoraOptions, TrainOptions)
    for key in options.__dataclass_fields__
}
MODELS = (HUB_ID, TINYLLAVA_ID, "moondream/starmie-v1", "stabilityai/stable-diffusion-3.5-medium")


def examine(model: str | None = None, configs: Sequence[str] = ()) -> Iterator[str]:
    """The report, line by line; with `configs` their estimates only."""
    if not configs:
        yield from _machine()
        configs = [str(path) for path in sorted((CONFIGS / "recipes").glob("*_*gb.yaml"))]
        yield "Training configs (estimates; the memory that a step takes at its fullest):"
    for path in configs:
        estimate, step = estimate_config(path, model)
        yield f"  {Path(path).name}: {describe(estimate, step)}; {_verdict(estimate)}"


def estimate_config(path: str, model: str | None = None) -> tuple[Estimate, Step]:
    """The memory of a step as a recipe's YAML sets it up, of its own model or of `model`."""
    try:
        values = yaml.safe_load(find_config(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(values, dict) or (unknown := values.keys() - _KNOWN):
        wrong = f"unknown keys {', '.join(sorted(map(str, unknown)))}" if isinstance(values, dict) else "no mapping"
        raise UserError(f"--config {path}: {wrong}; give a config of recipes/*_lora.py")
    name = model or values.get("model") or ModelOptions().model
    lora = LoraOptions(**{key: value for key, value in values.items() if key in LoraOptions.__dataclass_fields__})
    defaults = {key: field.default for key, field in TrainOptions.__dataclass_fields__.items()}
    batch = values.get("per_device_train_batch_size", defaults["per_device_train_batch_size"])
    skeleton = _skeleton(name)
    step = Step(
        dtype=dtype_of(values.get("dtype")) or torch.bfloat16,
        quantize=values.get("quantize"),
        tune=values.get("tune", "lora"),
        optimizer=values.get("optim", "adamw_torch"),
        images=2 * int(batch),
        questions=values.get("questions_per_image", 1),
        crops=FAMILIES[skeleton.config.model_type].typical_crops,
        checkpointing=bool(values.get("gradient_checkpointing", False)),
        cached_features=bool(values.get("cache_features", False)),
    )
    return estimate_memory(skeleton, step, lora), step


def describe(estimate: Estimate, step: Step) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in estimate.parts.items())
    crops = f" of {step.crops} crops" if step.crops > 1 else ""
    return f"{estimate.total_gb:.1f} GB ({parts}) for {step.images} images{crops}"


def _skeleton(name: str) -> PreTrainedModel:
    """The model without its weights; of `auto` and the Hub's two the released shapes, without asking the Hub."""
    config: PreTrainedConfig
    if name in (HUB_ID, "auto"):
        config = MoondreamConfig()
    elif name == TINYLLAVA_ID:
        config = TinyLlavaConfig.from_dict(deepcopy(RELEASE))
    else:
        resolved = resolve_id(name)
        if not resolved.is_local:
            raise UserError(f"--model {name}: memory is estimated for {HUB_ID}, {TINYLLAVA_ID}, folders and nano alone")
        try:
            config = load_untrusted(AutoConfig, resolved.path_or_id)
        except (OSError, ValueError) as error:
            raise UserError(f"--model {name}: no model's configuration can be read there ({error})") from error
        if config.model_type not in FAMILIES or not FAMILIES[config.model_type].estimates_memory:
            raise UserError(
                f"--model {name}: memory is estimated for moondream and the LLaVA family, not for {config.model_type}"
            )
    with torch.device("meta"):
        return build_untrusted(AutoModelForImageTextToText, config)


def _verdict(estimate: Estimate) -> str:
    if not torch.cuda.is_available():
        return "there is no GPU here to hold it against"
    free, whole = (size / 1e9 for size in torch.cuda.mem_get_info())
    return f"{'fits' if estimate.fits(free) else 'DOES NOT FIT'} ({free:.1f} of {whole:.1f} GB are free)"


def _machine() -> Iterator[str]:
    yield ", ".join(f"{name} {found}" for name, found in versions().items())
    yield f"CPU: {cpu_cores()} cores; disk: {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield f"GPU {index}: {device.name}, {device.total_memory / 1e9:.0f} GB"
    else:
        yield f"GPU: none; models run on the CPU in {default_dtype(torch.device('cpu'))}, and `auto` means nano"
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        remedy = f"missing {', '.join(missing)}: {how_to_install(extra)}" if missing else "complete"
        yield f"extra {extra}: {remedy}"
    for name in MODELS:
        yield f"{name}: {'in the local cache' if _is_cached(name) else 'not cached, fetched when it is first used'}"


def _is_cached(name: str) -> bool:
    files: tuple[Any, ...] = tuple(
        try_to_load_from_cache(name, file) for file in ("config.json", "model_index.json", "tokenizer.json")
    )
    return any(isinstance(found, str) for found in files)
