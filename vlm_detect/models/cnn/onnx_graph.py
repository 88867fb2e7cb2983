"""A trained CNN with its calibration as one ONNX graph: grey levels in, calibrated probabilities out.

    pixels (B, 3, S, S) uint8 RGB -> log_odds (B,), p_fake (B,), probabilities_<head> (B, C) of each head

The square of an image is cut outside of the graph (`squares.to_square`): its middle, or the image scaled to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.verdicts import VERDICT, sides_of
from vlm_detect.models.onnx import OnnxGraph


class CnnWithCalibration(nn.Module):
    """What `CnnDetector.scores` computes of squares."""

    def __init__(self, detector: CnnDetector) -> None:
        super().__init__()
        self.network = detector.model
        self.names = list(detector.heads)
        classes = detector.heads[VERDICT]
        self.sides = sides_of(classes, detector.config.task) if len(classes) > 2 else None
        self.bias, self.temperature = detector.calibration.bias, detector.calibration.temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(pixels)
        verdict = logits[VERDICT].double()  # single precision would round the probabilities of sure verdicts
        if self.sides is None:
            odds = verdict[:, 0]
        else:
            odds = verdict[:, self.sides.positive].logsumexp(1) - verdict[:, self.sides.other]
        p_fake = ((odds - self.bias) / self.temperature).sigmoid()
        return odds.float(), p_fake.float(), *(_probabilities(logits[name]) for name in self.names)


def _probabilities(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.softmax(1)


def onnx_graph(detector: CnnDetector) -> OnnxGraph:
    side = detector.config.image_size
    generator = torch.Generator().manual_seed(0)

    def squares(count: int) -> dict[str, Tensor]:
        return {"pixels": torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)}

    return OnnxGraph(
        CnnWithCalibration(detector),
        squares(2),
        ["log_odds", "p_fake", *(f"probabilities_{name}" for name in detector.heads)],
        {"pixels": {0: "images"}},
        [squares(1), squares(5)],
    )
