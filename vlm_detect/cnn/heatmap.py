"""Where a network looks: Grad-CAM (arXiv 1610.02391) of captum on its last feature maps.

    heat = heat_maps(detector, pixels)      # (N, S, S) in [0, 1]: what speaks for "generated"

A map is as coarse as the features are (4x4 places for most networks at 32 pixels) and brought to the image's size.
It says where the evidence stood, not what it was.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_detect.extras import require
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.verdicts import VERDICT, sides_of


def heat_maps(detector: CnnDetector, pixels: np.ndarray) -> np.ndarray:
    """The evidence for the run's positive class, by place in images (N, S, S, 3) uint8: (N, S, S), at most 1.

    Where nothing speaks for it a map is 0 everywhere.

    Raises:
        UserError: without captum, which the extra `cnn` installs.
    """
    require("cnn", "captum")
    from captum.attr import LayerGradCam

    model = detector.model.eval()

    def odds(prepared: Tensor) -> Tensor:
        logits = model.logits_of(prepared)[VERDICT]
        if logits.shape[1] == 1:
            return logits[:, 0]
        sides = sides_of(detector.heads[VERDICT], detector.config.task)
        return logits[:, sides.positive].logsumexp(dim=1) - logits[:, sides.other]

    with torch.enable_grad():
        prepared = model.prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(model.device)).requires_grad_()
        coarse = LayerGradCam(odds, model.trunk.maps).attribute(prepared, relu_attributions=True)  # (N, 1, h, w)
    heat = F.interpolate(coarse.detach(), pixels.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    most = heat.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, heat / most.clamp(min=1e-12), heat).cpu().numpy()


def overlay(pixels: np.ndarray, heat: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """(S, S, 3) uint8: the image in grey under its heat (S, S), from none over red to yellow."""
    grey = pixels.astype(float).mean(axis=2, keepdims=True).repeat(3, axis=2)
    colours = np.stack([np.clip(3 * heat, 0, 1), np.clip(3 * heat - 1, 0, 1), np.zeros_like(heat)], axis=2) * 255
    weight = strength * np.sqrt(heat)[:, :, None]
    return (grey * (1 - weight) + colours * weight).round().astype(np.uint8)
