"""Fit a run's calibration again, on one's own labelled images.

    vlm-detect calibrate runs/moondream_lora --data data/mine [--max_fpr 0.01]

A probability is as good as the images it was fitted on are like those it is used on. The test split is refused: what a
threshold was chosen on can no longer measure it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.registry import load_vlm
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration, fit
from vlm_detect.train.usable import usable
from vlm_detect.train.validation import ValidationSet, scores_of

_BATCH = 16  # images read at once


def recalibrate(
    run: Path, data: str, *, split: str = "validation", limit: int | None = None, max_fpr: float | None = None
) -> tuple[Calibration, dict[str, float]]:
    """Score a split's images, fit temperature, threshold and the unsure band, and write `calibration.json` into `run`.

    Gives the calibration and the scores of the images that it was fitted on.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory; give the --output_dir of a recipe")
    if max_fpr is not None and not 0 <= max_fpr < 1:
        raise UserError(f"--max_fpr {max_fpr}: a part of the real images, at least 0 and below 1")
    if split == "test":
        raise UserError("--split test: a threshold chosen on the test images is not measured by them; use validation")
    opened = open_dataset(data)
    if split not in opened:
        raise UserError(f"{data} has no {split} split (it has {', '.join(opened)}): name one with --split")
    vlm = load_vlm(str(run))
    images = ValidationSet.of(usable(opened[split], data, vlm), limit)
    engine = Engine(vlm, batch_images=_BATCH, cache_bytes=0)  # every image is seen once
    odds: list[float] = []
    for start in progress(range(0, len(images), _BATCH), "scoring", unit="batch"):
        stop = min(start + _BATCH, len(images))
        odds += log_odds(engine, [images.images[i].open() for i in range(start, stop)])
    scores = scores_of(np.array(odds), images.generated)
    calibration = fit(np.array(odds), images.generated, max_fpr)
    calibration.save(run)
    return calibration, scores
