"""`vlm-detect doctor`: what this machine has, what is missing, what is cached, and which training configs fit.

    vlm-detect doctor
    vlm-detect doctor --model vikhyatk/moondream2 --config moondream_qlora_8gb

Nothing is downloaded or loaded. The memory of the package's own configs is recorded in `estimates.json`; for another
config or model it is estimated on demand (`estimates.py`), which takes seconds: for any image-text model whose
configuration and processor are on this machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vlm_detect.apps.recorded import ESTIMATES, sized_configs
from vlm_detect.config import CONFIGS, find_config, versions
from vlm_detect.extras import how_to_install
from vlm_detect.hub_cache import is_cached
from vlm_detect.machine import computes_in_bfloat16, cpu_cores
from vlm_detect.plugins import installed, mistaken

# What the optional parts need, by the extra that brings it.
EXTRAS = {
    "data": ["diffusers", "imagehash"],
    "train": ["tensorboard"],
    "preference": ["trl"],
    "quant": ["bitsandbytes"],
    "cnn": ["captum"],
    "eval": ["openai", "rouge_score"],
    "serve": ["fastapi", "uvicorn", "multipart", "prometheus_client", "c2pa"],
    "slurm": ["submitit"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "ray": ["ray"],
}
MODELS = (
    "vikhyatk/moondream2",
    "tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B",
    "moondream/starmie-v1",
    "stabilityai/stable-diffusion-3.5-medium",
)


def examine(model: str | None = None, configs: Sequence[str] = ()) -> Iterator[str]:
    """The report, line by line; with `configs` their estimates only."""
    paths = [find_config(given) for given in configs]
    if not paths:
        yield from _machine()
        paths = sized_configs()
        yield "Training configs (estimated peak memory of a step):"
    recorded = json.loads(ESTIMATES.read_text(encoding="utf-8")) if model is None else {}
    for path in paths:
        yield f"  {path.name}: {_said(recorded.get(path.stem) if _is_own(path) else None, path, model)}"


def _is_own(path: Path) -> bool:
    return path.resolve().is_relative_to(CONFIGS.resolve())


def _said(found: Mapping[str, Any] | None, path: Path, model: str | None) -> str:
    bfloat16 = not torch.cuda.is_available() or computes_in_bfloat16("cuda")
    if found is None or (_dtype(found, bfloat16) == "float32" != found["dtype"]):  # float16 is as large as bfloat16
        from vlm_detect.apps.estimates import record_of  # lazy: its imports take longer than everything else here

        found = record_of(str(path), model, bfloat16=bfloat16)
    total_gb = sum(found["parts"].values()) / 1e9
    validation_gb, inference_gb = (found["phases"][name] / 1e9 for name in ("validation", "inference"))
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in found["parts"].items())
    each = f"{found['crops']} crops" if found["crops"] > 1 else f"{found['tokens']:,} tokens"
    phases = f"validation {validation_gb:.1f} GB; verdicts, captions and serving from {inference_gb:.1f} GB"
    fits = _verdict(max(total_gb, validation_gb))
    dtype = _dtype(found, bfloat16)
    return f"{total_gb:.1f} GB in {dtype} ({parts}) for {found['images']} images of {each}; {phases}; {fits}"


def _dtype(found: Mapping[str, Any], bfloat16: bool) -> str:
    """What a GPU that has `bfloat16`, or has not, computes in under the estimated config."""
    in_its_place = not bfloat16 and found["dtype"] == "bfloat16"
    return str(found["without_bfloat16" if in_its_place else "dtype"])


def _verdict(total_gb: float) -> str:
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return f"estimated for CUDA; the GPU here may use {torch.mps.recommended_max_memory() / 1e9:.1f} GB"
        return "there is no GPU here to compare with"
    free, whole = (size / 1e9 for size in torch.cuda.mem_get_info())
    return f"{'fits' if total_gb <= free else 'DOES NOT FIT'} ({free:.1f} of {whole:.1f} GB are free)"


def _machine() -> Iterator[str]:
    yield ", ".join(f"{name} {found}" for name, found in versions().items())
    yield f"CPU: {cpu_cores()} cores; disk: {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in {Path.cwd()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield f"GPU {index}: {device.name}, {device.total_memory / 1e9:.0f} GB"
        if not computes_in_bfloat16("cuda"):
            yield "no bfloat16: moondream2 computes in float32; TinyLLaVA and generators compute in float16"
    elif torch.backends.mps.is_available():
        usable_gb = torch.mps.recommended_max_memory() / 1e9
        yield f"GPU: MPS, {usable_gb:.0f} GB of the machine's memory; models run in float32"
    else:
        yield "GPU: none; models run on the CPU in float32, and `auto` selects nano"
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        remedy = f"missing {', '.join(missing)}: {how_to_install(extra)}" if missing else "complete"
        yield f"extra {extra}: {remedy}"
    for point in installed():
        yield f"plugin {point.dist.name if point.dist else '(unknown)'}: {point.name} = {point.value}"
    yield from mistaken()
    for name in MODELS:
        yield f"{name}: {'in the local cache' if is_cached(name) else 'not cached, downloaded on first use'}"
