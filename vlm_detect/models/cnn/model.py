"""A network with its heads: a transformers model, so that saving, loading and sharing are transformers' own.

    model = new_model(CnnConfig(arch="fakenet2", heads={"verdict": ["real", "generated"]}))
    model(pixels)["verdict"]           # pixels (B, 3, H, W) uint8 -> logits (B, 1)
    CnnForDetection.from_pretrained("runs/cnn")

A head of two classes has one logit, the log-odds of the second; a head of more has one a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from vlm_detect.errors import UserError, first_line
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.views import show
from vlm_detect.models.untrusted import load_untrusted


class CnnForDetection(PreTrainedModel):
    """Pixels to logits of every head; `prepare` and `logits_of` are its two halves."""

    config_class = CnnConfig
    main_input_name = "pixels"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        architecture = ARCHITECTURES[config.arch]
        if config.image_size < architecture.smallest:
            raise UserError(
                f"{config.arch} takes images of at least {architecture.smallest} pixels a side, these have "
                f"{config.image_size}: choose another --arch (flux_small, fakenet2 and mai take 8)"
            )
        self.trunk = architecture.build(config)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.trunk.width, n_logits(classes)) for name, classes in (config.heads or {}).items()}
        )
        self.post_init()
        if config.tune == "head":
            self.trunk.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: torch's own initialisation, and in a backbone transformers', have been done."""

    def train(self, mode: bool = True) -> CnnForDetection:
        super().train(mode)
        if self.config.tune == "head":
            self.trunk.maps.eval()  # frozen features keep their batch norms' means
        return self

    def prepare(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> float of the same shape, as the trunk takes it."""
        config = self.config
        shown = show(pixels, config.view, config.saturation).float()
        mean = torch.tensor(config.mean, device=pixels.device)[:, None, None] * 255
        std = torch.tensor(config.std, device=pixels.device)[:, None, None] * 255
        return (shown - mean) / std

    def logits_of(self, prepared: Tensor) -> dict[str, Tensor]:
        features = self.trunk(prepared)
        return {name: head(features).float() for name, head in self.heads.items()}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.logits_of(self.prepare(pixels))


def n_logits(classes: list[str]) -> int:
    return 1 if len(classes) == 2 else len(classes)


def head_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B, L) logits, the mean over targets (B,) that are not -1; one logit means two classes."""
    if logits.shape[1] == 1:  # the softmax over (0, logit) is the logistic function: one formula for both
        logits = F.pad(logits, (1, 0))
    known = (targets >= 0).sum().clamp(min=1)
    total = F.cross_entropy(logits, targets, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum")
    return total / known


def new_model(config: CnnConfig, weights: str | None = None) -> CnnForDetection:
    """A network to be trained: from scratch, or its backbone with the weights of `weights`, a folder or Hub id."""
    if weights is None:
        return CnnForDetection(config)
    model = CnnForDetection(config)
    backbone: Any = model.trunk.maps.resnet if config.arch != "frozen" else model.trunk.maps.backbone
    try:
        pretrained = load_untrusted(AutoModel, weights, config=backbone.config)
    except (OSError, ValueError) as error:
        raise UserError(f"--weights {weights}: {first_line(error)}") from error
    state, own = pretrained.state_dict(), backbone.state_dict()
    # A stem for small images has other shapes than ImageNet's and learns from scratch.
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    backbone.load_state_dict(fitting, strict=False)
    return model


@torch.inference_mode()
def logits_of(
    model: nn.Module, images: np.ndarray, places: Sequence[int] | np.ndarray, batch_size: int, device: Any
) -> dict[str, np.ndarray]:
    """Logits (len(places), L) of every head for images[places] of (N, S, S, 3) uint8, in batches."""
    training = model.training
    model.eval()
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(places), batch_size):
        pixels = torch.from_numpy(np.asarray(images[places[start : start + batch_size]])).permute(0, 3, 1, 2)
        for head, values in model(pixels.to(device)).items():
            parts.setdefault(head, []).append(values.float().cpu().numpy())
    model.train(training)
    return {head: np.concatenate(values) for head, values in parts.items()}
