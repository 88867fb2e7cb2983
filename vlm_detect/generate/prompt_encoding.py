"""Prompts that are encoded before rendering, so that text encoders and denoiser take turns in memory.

    if encodes_ahead(pipeline):
        arguments = encode_ahead(pipeline, "a red car", {}, sampling, device)   # of the pipeline's call

One prompt at a time, because padding would change the last bits of an embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlm_detect.generate.options import Sampling

_FOUR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
# What a pipeline's `encode_prompt` returns, by the argument that takes it, in order; further results are not needed.
_RESULTS = {
    "AuraFlowPipeline": (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
    "Flux2Pipeline": ("prompt_embeds",),
    "FluxKontextPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    "HiDreamImagePipeline": (
        "prompt_embeds_t5",
        "negative_prompt_embeds_t5",
        "prompt_embeds_llama3",
        "negative_prompt_embeds_llama3",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "StableDiffusion3Pipeline": _FOUR,
    "StableDiffusionXLPipeline": _FOUR,
}
_LAYERS_FIRST = ("prompt_embeds_llama3", "negative_prompt_embeds_llama3")  # (layers, B, tokens, width)


def encodes_ahead(pipeline: Any) -> bool:
    return type(pipeline).__name__ in _RESULTS


def encode_ahead(
    pipeline: Any, prompt: str, first: Mapping[str, Any], sampling: Sampling, device: torch.device
) -> dict[str, Any]:
    """The arguments that stand for `prompt`; `first` are those of an earlier one, whose empty prompt is reused."""
    names = _RESULTS[type(pipeline).__name__]
    known = inspect.signature(pipeline.encode_prompt).parameters
    options: dict[str, Any] = {"prompt": prompt, "device": device}
    options |= {name: None for name in ("prompt_2", "prompt_3") if name in known}
    if "max_sequence_length" in known:
        options["max_sequence_length"] = sampling.max_sequence_length
    if "do_classifier_free_guidance" in known:
        options["do_classifier_free_guidance"] = sampling.guidance > 1
        options |= {name: value for name, value in first.items() if name.startswith("negative")}
    values = pipeline.encode_prompt(**options)
    return {name: value for name, value in zip(names, values, strict=False) if value is not None}


def joined(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of several prompts as those of one batch."""
    batch: dict[str, Any] = {}
    for name in prompts[0]:
        values = [prompt[name] for prompt in prompts]
        tensors = isinstance(values[0], torch.Tensor)
        batch[name] = torch.cat(values, dim=int(name in _LAYERS_FIRST)) if tensors else values
    return batch
