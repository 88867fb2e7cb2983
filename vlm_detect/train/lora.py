"""Select the linear layers of a LoRA by keywords instead of module names.

    select_targets(model, "attention")             # the language model's attention
    select_targets(model, "mlp", last_layers=8)    # the MLPs of its last eight layers
    select_targets(model, "all-linear+vision")     # attention and MLP, also in the vision tower and connector
    select_targets(model, "all-linear+head")       # also the vocabulary head, for words that the model never produced

Modules are classified by the words of their path, so the same keywords work for every architecture here. The
embeddings and moondream's region heads (detection and pointing) are never wrapped.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from vlm_detect.errors import UserError
from vlm_detect.models.base import VLM
from vlm_detect.models.bases import recorded_base
from vlm_detect.models.parts import is_never_wrapped, is_vision, keep_in_float32
from vlm_detect.models.registry import NANO_NAMES
from vlm_detect.train.options import LoraOptions

_LAYER = re.compile(r"\.(?:blocks?|layers?|h)\.(\d+)\.")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ATTENTION = re.compile(r"attn|attention|mixer|Wqkv")


def add_lora(vlm: VLM, options: LoraOptions, seed: int = 0) -> None:
    """Wrap the model of `vlm` with a LoRA and freeze everything else. The initialization depends only on `seed`."""
    if options.train_connector and vlm.connector is None:
        raise UserError(f"--train_connector: {vlm.name} has no known connector; adapt it with --lora_targets +vision")
    connector = [vlm.connector] if options.train_connector and vlm.connector else []
    trained_whole = [*connector, *vlm.trained_whole]
    targets = [
        name
        for name in select_targets(vlm.model, options.lora_targets, options.lora_last_layers)
        if not vlm.is_unused(name) and not any(whole in name for whole in trained_whole)
    ]
    # peft's wrapper of a causal model passes embeddings on, which not every model takes.
    is_causal = "inputs_embeds" in inspect.signature(vlm.model.forward).parameters
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if is_causal else None,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=targets,
        modules_to_save=trained_whole or None,
    )
    torch.manual_seed(seed)
    wrapped = wrap(vlm.model, config)
    # By this name the adapter finds its base model, even if the folder moves.
    config.base_model_name_or_path, config.revision = recorded_base(vlm.name, NANO_NAMES), vlm.revision
    # peft keeps a set, whose order differs between processes; sorted, equal runs write equal files.
    config.target_modules = sorted(targets)
    trained, everything = wrapped.get_nb_trainable_parameters()
    print(f"LoRA on {len(targets)} layers: {trained:,} of {everything:,} parameters are trained")
    vlm.model = wrapped


def wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The PEFT model; modules trained in addition to the LoRA are kept in float32."""
    with warnings.catch_warnings():  # peft 0.21 uses transformers 4's name of gradient checkpointing
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        wrapped = get_peft_model(model, config)
    for module in wrapped.modules():
        if isinstance(module, ModulesToSaveWrapper):
            keep_in_float32(module)
        elif isinstance(module, _BATCH_NORMS) and not any(p.requires_grad for p in module.parameters()):
            module.register_forward_pre_hook(_stay)
    return wrapped


def _stay(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
    """A frozen layer keeps its running statistics, which a LoRA does not store."""
    module.eval()


@contextmanager
def inputs_left_to_autocast(model: nn.Module) -> Iterator[None]:
    """Meanwhile a LoRA's input keeps its dtype, and autocast computes the LoRA in its own; the weights stay float32.

    peft casts an input to the weights' float32 first, which on a GPU costs the traffic of every activation once more,
    and dropout in float32. Not of DoRA, whose norms need float32. To be held until the backward pass is over:
    checkpointed layers run again in it.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and not module.lora_variant]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def select_targets(model: nn.Module, targets: str, last_layers: int | None = None) -> list[str]:
    """Full names of the linear layers that `targets` chooses, in the model's order.

    Raises:
        UserError: if nothing is selected.
    """
    words = targets.split("+")
    everything = "all-linear" in words or words == ["vision"]
    attention, mlp = everything or "attention" in words, everything or "mlp" in words
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    wrappable = [name for name in linear if not is_never_wrapped(name)]
    text = [name for name in wrappable if not is_vision(name)]
    vision = [name for name in wrappable if is_vision(name)]
    depth = 1 + max((_layer(name) for name in text), default=-1)
    first = 0 if last_layers is None else depth - last_layers
    chosen = [name for name in text if _layer(name) >= first] if words != ["vision"] else []
    chosen += vision if "vision" in words else []
    chosen = [name for name in chosen if (attention if _ATTENTION.search(name) else mlp)]
    chosen += [name for name in linear if name.rpartition(".")[2] == "lm_head"] if "head" in words else []
    if not chosen:
        raise UserError(
            f"--lora_targets {targets} (last_layers {last_layers}) selects none of the model's {len(linear)} linear "
            f"layers; the language model has {depth} layers"
        )
    return chosen


def _layer(name: str) -> int:
    """The index of a module's layer; -1 outside the layer stack."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1
