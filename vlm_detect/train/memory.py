"""Estimate the memory of a training step from the real shapes on the meta device, without loading or computing
anything.

    estimate = estimate_memory(model, Step(image=cost), LoraOptions())    # `model` built under torch.device("meta")
    estimate.total_gb; estimate.parts

Weights, gradients and optimiser states are counted by dtype. Activations are the peak of a complete step (tower,
decoder, answer loss and backward pass): it is run on the meta device, where tensors have shapes and no content, while
the bytes of live tensors are tracked. Of an architecture whose tower reads values, which meta tensors lack, the frozen
tower is not run: its peak follows its config (`infer.footprint`). Attention counts as a fused kernel, without its score
matrix. CUDA itself and fragmentation are a flat `OVERHEAD_GB`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from vlm_detect.errors import UserError, first_line
from vlm_detect.infer.footprint import Footprint
from vlm_detect.models.base import FAMILIES, VLM, ImageCost
from vlm_detect.models.generic import ChatVLM
from vlm_detect.models.parts import is_vision
from vlm_detect.train.lora import select_targets, wrap
from vlm_detect.train.loss import CHUNK
from vlm_detect.train.options import LoraOptions

OVERHEAD_GB = 1.0
QUESTION_TOKENS = 50  # for a question with its answer and template
ANSWER_TOKENS = 4
FEW, MORE = 2, 4  # layers
_BITS = {"nf4": 4.127, "int8": 8.0}  # per weight with its scales: 4 + (8 + 32 / 256) / 64
_STATE_BYTES = {"adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0, "sgd": 0}  # per trained weight; AdamW: 8


@dataclass(frozen=True)
class Step:
    """The settings that memory depends on."""

    dtype: torch.dtype = torch.bfloat16
    quantize: str | None = None
    tune: str = "lora"
    optimizer: str = "adamw_torch"
    images: int = 8  # per step: twice the batch size
    questions: int = 1
    crops: int = 10  # moondream; LLaVA reads an image as one crop
    image: ImageCost | None = None  # of the families whose tower is not run
    checkpointing: bool = False
    cached_features: bool = False


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose."""

    parts: dict[str, float]

    @property
    def total_gb(self) -> float:
        return sum(self.parts.values()) / 1e9

    def fits(self, gb: float) -> bool:
        return self.total_gb <= gb


def estimate_memory(model: PreTrainedModel, step: Step, lora: LoraOptions) -> Estimate:
    """The peak of one training step on the meta device. The model stays wrapped by the LoRA afterwards.

    Raises:
        UserError: for a tower that would have to be run and cannot, or a decoder that reads values.
    """
    family = family_of(model.config)
    if "vision" in lora.lora_targets.split("+") and not family.estimates_memory:
        raise UserError(
            f"--lora_targets {lora.lora_targets}: the memory of a trained tower is not estimated for "
            f"{model.config.model_type}: omit vision"
        )
    weights = _weight_bytes(model, step)
    model = model.to(step.dtype).train()
    if step.tune == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not is_vision(name) and "region" not in name)
    else:
        connector = [family.connector] if lora.train_connector and family.connector else []
        targets = select_targets(model, lora.lora_targets, lora.lora_last_layers)
        config = LoraConfig(
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            target_modules=[name for name in targets if not any(whole in name for whole in connector)],
            modules_to_save=connector or None,
        )
        wrap(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    if step.tune != "full":
        weights += sum(p.numel() * 4 for p in trained)  # peft keeps a LoRA in float32
    gradients = sum(p.numel() * (p.element_size() if step.tune == "full" else 4) for p in trained)
    states = sum(p.numel() * _STATE_BYTES.get(step.optimizer, 8) for p in trained)
    return Estimate(
        {
            "weights": weights,
            "gradients": gradients,
            "optimiser": states,
            "activations": _activation_bytes(model, step),
            "overhead": OVERHEAD_GB * 1e9,
        }
    )


def _weight_bytes(model: nn.Module, step: Step) -> float:
    """The bytes of the weights: with the language model's linear layers quantised if requested."""
    quantised = set()
    if step.quantize:
        quantised = {f"{name}.weight" for name in select_targets(model, "all-linear")}
    return sum(
        p.numel() * (_BITS[str(step.quantize)] / 8 if name in quantised else step.dtype.itemsize)
        for name, p in model.named_parameters()
    )


def family_of(config: PreTrainedConfig) -> type[VLM]:
    """The class of models with this configuration."""
    is_known = config.model_type in FAMILIES
    return FAMILIES[config.model_type] if is_known else ChatVLM


def packs(config: PreTrainedConfig) -> bool:
    """Whether questions are taken to share a row: those of a decoder that attends to tokens in every layer. Training
    measures it on the weights (`models.generic.probe`)."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    return not family_of(config).prefix_lm and kinds <= {"full_attention", "sliding_attention"}


def _activation_bytes(model: Any, step: Step) -> float:
    """The peak of live bytes during a step, without weights and gradients."""
    _use_fused_attention(model)
    if step.checkpointing:
        with warnings.catch_warnings():  # its name in transformers below 5.20
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()  # as in training: `recipe_trainer.LeaveFrozen`
    stack = _decoder_layers(model)
    if stack is None:
        return max(_peaks(model, step))
    # What a layer adds is always the same: two short decoders tell the peak of the whole one.
    parent, name, layers = stack
    decoder, config = {}, getattr(parent, "config", model.config.get_text_config())
    for count in (MORE, FEW):  # transformers watches the layers that are there first
        setattr(parent, name, layers[:count])
        config.num_hidden_layers = count
        tower, decoder[count] = _peaks(model, step)
    setattr(parent, name, layers)
    config.num_hidden_layers = len(layers)
    each = (decoder[MORE] - decoder[FEW]) / (MORE - FEW)
    return max(tower, decoder[FEW] + each * (len(layers) - FEW))


def _decoder_layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The module that holds the decoder's layers, and their name there, where there are many and all are alike."""
    depth, found = model.config.get_text_config().num_hidden_layers, []
    for prefix, parent in model.named_modules():
        for name, part in parent.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == depth > MORE and not is_vision(f"{prefix}.{name}"):
                found.append((parent, name, part))
    if len(found) != 1:
        return None
    shapes = [{name: weight.shape for name, weight in layer.named_parameters()} for layer in found[0][2]]
    return found[0] if all(one == shapes[0] for one in shapes) else None


def _peaks(model: Any, step: Step) -> tuple[float, float]:
    """The peaks of the tower and of the decoder, with what the tower leaves to it."""
    family = family_of(model.config)
    # An image is read again for each question where questions do not share a row.
    rows, questions = (step.images, step.questions) if packs(model.config) else (step.images * step.questions, 1)
    with torch.device("meta"), LiveBytes(model) as live:
        if family.estimates_memory:
            prefix = family.skeleton_prefixes(
                model, rows, crops=step.crops, dtype=step.dtype, cached=step.cached_features
            )
            tower = float(live.peak)
        else:
            assert step.image is not None
            runs = 0 if step.cached_features else rows  # of the tower
            tower = runs * Footprint(model.config, step.dtype.itemsize, step.image).tower_bytes
            width = model.config.get_text_config().hidden_size
            prefix = torch.empty(rows, step.image.prefix_tokens, width, dtype=step.dtype)
        live.peak = live.live
        hidden = _hidden(model, step, family, prefix, questions)
        del prefix
        supervised = hidden.flatten(0, 1)[: rows * questions * ANSWER_TOKENS]
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk in supervised.split(CHUNK):
            total = total + checkpoint(_loss, model.get_output_embeddings(), chunk, use_reentrant=False)
        total.backward()
        model.zero_grad()
    return tower, float(live.peak)


def _hidden(model: Any, step: Step, family: type[VLM], prefix: torch.Tensor, questions: int) -> torch.Tensor:
    """The input of the vocabulary head for rows of a prefix (rows, T, D) and so many questions."""
    rows, tokens, width = prefix.shape
    text = torch.empty(rows, questions * QUESTION_TOKENS, width, dtype=step.dtype)
    inputs = {"inputs_embeds": torch.cat([prefix.to(step.dtype), text], dim=1)}
    length = tokens + text.shape[1]
    if packs(model.config):
        inputs["attention_mask"] = torch.empty(rows, 1, length, length, dtype=step.dtype)
    if family.estimates_memory:
        inputs["position_ids"] = torch.empty(rows, length, dtype=torch.long)
    try:
        hidden = family.hidden_states(model, inputs)
        if hidden is None:
            raise ValueError("its last state cannot be chosen")
        return hidden
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise UserError(
            f"memory is not estimated for {model.config.model_type}: its decoder does not run on shapes alone "
            f"({first_line(error)})"
        ) from error


def _loss(head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    targets = torch.empty(len(hidden), dtype=torch.long, device="meta")
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of live tensors; `peak` is the maximum. Tensors of `model` are excluded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {id(storage): storage for storage in (p.untyped_storage() for p in model.parameters())}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class _Fused(torch.autograd.Function):
    """The memory of fused attention: query, key, value, output, and one number per row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output, rows = torch.empty_like(query), torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _fused_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return _Fused.apply(query, key, value).transpose(1, 2), None


def _use_fused_attention(model: PreTrainedModel) -> None:
    AttentionInterface.register("fused_shapes", _fused_attention)
    model.set_attn_implementation("fused_shapes")
