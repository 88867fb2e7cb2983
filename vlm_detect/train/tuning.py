"""How a run loads its model, and which weights it trains.

    vlm = load_vlm(ID, device=device, **loading(options, device))      # dtype, quantisation, attention
    tune(vlm, options, lora_options, seed)                             # a LoRA, or the complete language model

A quantised base keeps the image tower, the connector and the vocabulary head in `--dtype`: the tower's features equal
those of the unquantised model, so both can share a feature cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_detect.errors import UserError
from vlm_detect.extras import require
from vlm_detect.machine import compile_every_shape, default_dtype, dtype_of
from vlm_detect.models.base import VLM
from vlm_detect.models.expert_tokens import TokenExpert, attach
from vlm_detect.models.parts import NEVER, VISION, is_vision
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import ExpertOptions, LoraOptions, ModelOptions, TrainOptions


def loading(options: ModelOptions, device: torch.device) -> dict[str, Any]:
    """Arguments of the model's loader.

    Raises:
        UserError: for settings that this machine does not support.
    """
    if options.attention == "flex_attention" and device.type != "cuda":
        raise UserError(f"--attention flex_attention trains only on CUDA, not on {device.type}: omit it (sdpa)")
    arguments: dict[str, Any] = {"dtype": dtype_of(options.dtype)}
    if options.tune == "full" and arguments["dtype"] is None and default_dtype(device) is torch.float32:
        arguments["dtype"] = torch.float32  # not float16, whose gradients cannot be scaled
    if options.quantize:
        arguments["quantization_config"] = quantization(options.quantize)
    if options.attention:
        arguments["attn_implementation"] = options.attention
    return arguments


def scale_float16(training: TrainOptions, vlm: VLM) -> None:
    """Train a model in float16 under autocast with its loss scaled, where no flag says otherwise: unscaled, most
    gradients would be zero.

    Raises:
        UserError: for float16 with a model that does not compute in it.
    """
    if training.fp16:
        vlm.refuse_float16("--autocast fp16")
    elif vlm.model.dtype is torch.float16 and vlm.device.type == "cuda" and training.autocast in (None, "auto"):
        training.fp16, training.mixed_precision = True, "fp16"


def quantization(name: str) -> BitsAndBytesConfig:
    """NF4 with quantised scales (QLoRA, arXiv 2305.14314), or LLM.int8(). `load_vlm` sets the dtype that NF4 computes
    in."""
    require("quant", "bitsandbytes", wanted_by=f"--quantize {name}")
    return BitsAndBytesConfig(
        load_in_4bit=name == "nf4",
        load_in_8bit=name == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[f".*({VISION}|{NEVER}).*"],
    )


def tune(vlm: VLM, options: ModelOptions, lora: LoraOptions, seed: int) -> None:
    """Select the trained weights, and compile the decoder's layers if requested."""
    if options.quantize == "nf4":
        keep_weights_in_scoring(vlm.model)
    if options.tune == "full":
        train_language_model(vlm)
    else:
        add_lora(vlm, lora, seed=seed)
    if options.compile_layers:
        compile_layers(vlm.model, options.compile_layers)


def with_expert_tokens(vlm: VLM, options: ExpertOptions) -> VLM:
    """The model with tokens of an expert CNN, whose projector `tune` trains with the LoRA."""
    assert options.expert is not None
    assert options.expert_tokens is not None
    expert = TokenExpert.load(
        options.expert, n_tokens=options.expert_tokens, dropout=options.expert_dropout, device=vlm.device
    )
    return attach(vlm, expert)


def train_language_model(vlm: VLM) -> None:
    """Train every weight of the language model, including its embeddings and head; freeze the rest."""
    trained = everything = 0
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(not is_vision(name) and "region" not in name)
        trained += parameter.numel() * parameter.requires_grad
        everything += parameter.numel()
    print(f"full tuning of the language model: {trained:,} of {everything:,} parameters are trained")


def compile_layers(model: nn.Module, backend: str) -> None:
    """Compile each decoder layer separately: all share one graph, and checkpoints stay compatible."""
    if backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise UserError(f"--compile_layers {backend}: no such backend; torch has {', '.join(known)}")
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and not is_vision(name)
    ]
    compile_every_shape()
    for layer in layers:
        layer.compile(backend=backend)


def keep_weights_in_scoring(model: nn.Module) -> None:
    """On some CPUs bitsandbytes repacks a layer on its first evaluation, with rounded scales: training then continues
    with other weights, and DoRA, which reads them, fails."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
