"""A trained CNN as a detector, for scan, serve and the benchmark.

detector = CnnDetector.load("runs/cnn_fakenet2")
scores = detector.scores([image, ...])            # PIL images or paths' images of any size
scores.p_fake, scores.heads["object"], detector.heads["object"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.models.cnn.configuration import CnnConfig, is_cnn_run
from vlm_detect.models.cnn.model import CnnForDetection, logits_of
from vlm_detect.models.cnn.squares import squares_of
from vlm_detect.models.cnn.verdicts import COMPARED_CLASSES, VERDICT, odds_of
from vlm_detect.models.run_checksums import check_run_files
from vlm_detect.models.untrusted import load_untrusted
from vlm_detect.quiet import no_bars_in_logs
from vlm_detect.schema import check_folder
from vlm_detect.stats.calibration import Calibration

_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """Scores of N images: `odds` and `p_fake` (N,) of the positive class, and the probabilities (N, C) of each head.

    `odds` are the network's log-odds in nats; `p_fake` is calibrated.
    """

    odds: np.ndarray
    p_fake: np.ndarray
    heads: dict[str, np.ndarray]


@dataclass(frozen=True)
class CnnDetector:
    """A network and its run's calibration. `heads` names the classes of each head, the unaltered one first."""

    model: CnnForDetection
    calibration: Calibration
    name: str

    @classmethod
    def load(cls, run: str | Path, device: torch.device | str = "cpu") -> CnnDetector:
        """Load a run directory of `vlm-detect train cnn`; UserError for any other folder."""
        if not is_cnn_run(run):
            raise UserError(f"{run}: not the run of a CNN (no such config.json); train one with vlm-detect train cnn")
        check_folder(run)
        check_run_files(run)
        with no_bars_in_logs("transformers"):
            model = load_untrusted(CnnForDetection, run).eval().to(device)
        return cls(model, Calibration.load(Path(run)), str(run))

    @property
    def config(self) -> CnnConfig:
        return self.model.config

    @property
    def heads(self) -> dict[str, list[str]]:
        return self.model.config.heads or {}

    @property
    def positive_class(self) -> str:
        """The positive class, of which `p_fake` is the probability: "generated" or "edited"."""
        return COMPARED_CLASSES[self.config.task][0]

    def label(self, p_fake: float) -> str:
        """The verdict for a calibrated probability: the positive class, the other class, or "unsure"."""
        found = self.calibration.label(p_fake)
        return {"generated": self.positive_class, "real": COMPARED_CLASSES[self.config.task][1]}.get(found, found)

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, S, S, 3) uint8, each image's square as in training; a smaller image is upscaled."""
        return squares_of(images, self.config.image_size, self.config.fit)

    def scores(self, images: Sequence[Image.Image]) -> Scores:
        """Judge images, in batches."""
        pixels = self.pixels(images)
        logits = logits_of(self.model, pixels, np.arange(len(pixels)), _BATCH, self.model.device)
        odds = odds_of(logits[VERDICT], self.heads[VERDICT], self.config.task)
        probabilities = {head: _probabilities(values) for head, values in logits.items()}
        return Scores(odds, self.calibration.p_fake(odds), probabilities)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
