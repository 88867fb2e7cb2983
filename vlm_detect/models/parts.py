"""Parts of a model by the names of its modules: vision tower and connector, and what no LoRA ever wraps."""

from __future__ import annotations

import re

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

VISION = r"vision|visual|video|audio|image_|img_|projector|proj_mlp|connector|qformer|resampler|vqmodel|aligner"
EXPERT_TOKENS = "expert_tokens"  # the projector of `models.expert_tokens`, trained whole
NEVER = r"lm_head|emb|region|indexer"  # an indexer chooses by rank, which has no gradient
_VISION, _NEVER = re.compile(VISION), re.compile(NEVER)


def keep_in_float32(module: ModulesToSaveWrapper) -> None:
    """Hold what is trained in float32, as the LoRA is, inside a model of another dtype: bf16 would round small steps
    away. The base's own copy stays as it is."""

    def cast(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(argument.float() for argument in arguments)

    module.modules_to_save.float()
    module.register_forward_pre_hook(cast)


def is_never_wrapped(name: str) -> bool:
    """Whether a module of this name never gets a LoRA."""
    return bool(_NEVER.search(name))


def is_vision(name: str) -> bool:
    """Whether a parameter or module of this name belongs to the vision tower or the connector."""
    return bool(_VISION.search(name))
