"""A CNN that speaks about generated images next to a language model: as a witness, or through tokens of its own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from vlm_detect.config import file_sha256
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.detector import CnnDetector

WEIGHTS = "model.safetensors"


class Expert(NamedTuple):
    """A network; its run's path, and the sha256 of its weights."""

    detector: CnnDetector
    path: str
    sha256: str


def load_expert(run: str | Path, device: torch.device | str = "cpu") -> Expert:
    """`UserError` where the run is no CNN's, or one that was trained for another task."""
    detector = CnnDetector.load(run, device)
    if detector.positive_class != "generated":
        raise UserError(
            f"--expert {run}: was trained for the task {detector.config.task}, but verdicts here are "
            "generated or real: give a CNN of --task real_fake or generator"
        )
    return Expert(detector, str(Path(run).resolve()), file_sha256(Path(run) / WEIGHTS))
