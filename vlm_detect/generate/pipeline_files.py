"""The files of a diffusers pipeline: whether they are there, their class, and the parts that are loaded apart.

    check_pipeline(model)                    # UserError, before anything is downloaded
    pipeline_class(model)                    # FluxPipeline
    pipeline = load_pipeline(model, dtype=torch.bfloat16)

Three pipelines do not load by themselves. HiDream's repository lacks its Llama; the processors of FLUX.2 and of
Qwen-Image-Edit need torchvision in transformers, although a tokenizer and a PIL image processor do the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from vlm_detect.errors import UserError
from vlm_detect.models.generic.processors import absent_parts, image_only
from vlm_detect.models.registry import ResolvedModel, check_reachable, explain_load_error, resolve_id
from vlm_detect.models.untrusted import load_untrusted
from vlm_detect.quiet import quiet

_INDEX = "model_index.json"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"  # HiDream's fourth text encoder


def check_pipeline(model: ResolvedModel) -> None:
    """Raise `UserError` if `model` is not an accessible pipeline; downloads no weights."""
    read_index(model)


def read_index(model: ResolvedModel) -> dict[str, Any]:
    """`model_index.json`: the class of the pipeline and of its parts."""
    try:
        if model.is_local:
            path = Path(model.path_or_id) / _INDEX
            if not path.is_file():
                raise OSError(f"it has no {_INDEX}, so it is not a diffusers pipeline")
        else:
            check_reachable(model, _INDEX)
            path = Path(hf_hub_download(model.path_or_id, _INDEX, revision=model.revision))
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise ValueError(f"its {_INDEX} names no class")
    except (OSError, ValueError) as error:
        raise UserError(explain_load_error(model, error)) from error
    return index


def pipeline_class(model: ResolvedModel) -> type:
    """diffusers' class of the pipeline; UserError where the installed diffusers has none of that name."""
    import diffusers  # lazy: takes seconds

    name = read_index(model)["_class_name"]
    with quiet("transformers"):  # imports say which image processors lack torchvision
        cls = getattr(diffusers, name, None)
    if not isinstance(cls, type):
        raise UserError(f"{model.name}: diffusers {diffusers.__version__} has no {name}; another version may have it")
    return cls


def load_pipeline(model: ResolvedModel, *, dtype: torch.dtype, **options: Any) -> Any:
    """The loaded pipeline, with the parts that its repository lacks."""
    import diffusers

    index = read_index(model)
    load_apart = _APART.get(index["_class_name"])
    try:
        parts = load_apart(model, index, dtype) if load_apart else {}
        return load_untrusted(
            diffusers.DiffusionPipeline, model.path_or_id, revision=model.revision, dtype=dtype, **parts, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(explain_load_error(model, error)) from error


def _llama(model: ResolvedModel, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if all(index.get(name, [None])[0] for name in ("text_encoder_4", "tokenizer_4")):
        return {}
    llama = resolve_id(LLAMA, "renderer")
    try:
        check_reachable(llama)
        encoder = load_untrusted(AutoModelForCausalLM, llama.path_or_id, revision=llama.revision, dtype=dtype)
        tokenizer = load_untrusted(AutoTokenizer, llama.path_or_id, revision=llama.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"{model.name} needs {explain_load_error(llama, error)}") from error
    return {"text_encoder_4": encoder, "tokenizer_4": tokenizer}


def _tokenizer(model: ResolvedModel, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    from transformers import AutoTokenizer

    options = {"revision": model.revision, "subfolder": "tokenizer"}
    return {"tokenizer": load_untrusted(AutoTokenizer, model.path_or_id, **options)}


def _processor(model: ResolvedModel, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen2VLProcessor

    options = {"revision": model.revision, "subfolder": "processor"}
    parts = [load_untrusted(part, model.path_or_id, **options) for part in (Qwen2VLImageProcessorPil, AutoTokenizer)]
    return {"processor": image_only(Qwen2VLProcessor)(*parts, **absent_parts(Qwen2VLProcessor))}


_APART: dict[str, Callable[[ResolvedModel, dict[str, Any], torch.dtype], dict[str, Any]]] = {
    "Flux2Pipeline": _tokenizer,
    "HiDreamImagePipeline": _llama,
    "QwenImageEditPipeline": _processor,
    "QwenImageEditPlusPipeline": _processor,
}
