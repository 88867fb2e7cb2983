"""Fit a run's calibration again, on one's own images.

    vlm-detect calibrate runs/moondream_lora --data data/mine                     # real and generated images
    vlm-detect calibrate runs/moondream_lora --data photos/ --max_fpr 0.01        # photos alone: a guaranteed rate

A calibration is valid only for images like those it was fitted on. The test split is rejected: images that chose a
threshold cannot also evaluate it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlm_detect.config import read_run_json
from vlm_detect.data.known_images import KnownImage, KnownImages, known_images
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.picture import Picture, decode_picture
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration, fit
from vlm_detect.stats.guarantee import check_photos, percent
from vlm_detect.train.data import data_hashes
from vlm_detect.train.validation import ValidationSet, scores_of

_BATCH = 16  # images per batch


@dataclass
class Scored:
    """The log-odds of images, what is known of them, and why others have none."""

    odds: list[float] = field(default_factory=list)
    generated: list[bool] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def recalibrate(
    run: Path,
    data: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    max_fpr: float | None = None,
    force: bool = False,
) -> str:
    """Score images, fit what they allow, and write `calibration.json` into `run`; what came out, in a line.

    Real and generated images give temperature, bias, threshold and band; photos alone the threshold of a guaranteed
    rate, and leave the probabilities as they are. A labelled set is read whole for a guaranteed rate, but for what is
    kept apart for tests and what the run was trained on; otherwise its validation split.

    Raises:
        UserError: for a rate that the photos cannot guarantee, and, unless `force`, where the calibration would not be
            reliable. The old one stays.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory; give the --output_dir of a recipe")
    if split == "test":
        raise UserError(
            "--split test: a threshold chosen on the test images cannot be evaluated on them; use validation"
        )
    default = "validation" if max_fpr is None or _was_trained_on(run, data) else None
    images = known_images(data, split=split, default=default, limit=limit)
    if max_fpr is not None:
        check_photos(images.real, max_fpr)
    elif not (images.real and images.generated):
        raise UserError(
            f"{images.named}: {images.real} real and {images.generated} generated images; a calibration needs both, "
            "and photos alone a guaranteed rate: --max_fpr 0.01"
        )
    detector = Detector(str(run))
    scored = score(detector, images)
    odds, generated = np.array(scored.odds), np.array(scored.generated, dtype=bool)
    if not np.isfinite(odds).all():
        raise UserError(f"{run}: gives non-finite scores: its weights have diverged; train it again")
    if images.generated:
        calibration = fit(odds, generated, max_fpr, scored.groups)
        if calibration.doubt and not force:
            raise UserError(
                f"{run}: {calibration.doubt} on {images.named}: nothing to calibrate, the old calibration stays; "
                "--force writes this one, marked as not reliable"
            )
        scores = f" (AUROC {scores_of(odds, generated)['auroc']:.3f})"
    else:
        assert max_fpr is not None  # checked above
        calibration, scores = detector.calibration.fit_photos(odds, max_fpr, scored.groups), ""
    calibration.save(run)
    return f"{run}: calibrated on {len(odds)} images{scores}: {_told(calibration)}{_left_out(scored, images)}"


def score(detector: Detector, images: KnownImages) -> Scored:
    """Judge every image that can be read."""
    scored = Scored()
    batch: list[tuple[KnownImage, Picture]] = []
    for image in progress(images, "scoring", unit="img", total=len(images)):
        picture = _picture(detector, image)
        if isinstance(picture, str):
            scored.unread[picture] += 1
            continue
        batch.append((image, picture))
        if len(batch) == _BATCH:
            _judge(detector, batch, scored)
            batch = []
    if batch:
        _judge(detector, batch, scored)
    return scored


def calibrated(odds: np.ndarray, validation: ValidationSet) -> Calibration:
    """The calibration of a run on its validation images, whose log-odds are (N,); says where it is not reliable."""
    found = fit(odds, validation.generated, groups=validation.groups)
    if found.doubt:
        print(f"calibration: not reliable, {found.doubt} on the validation split; every verdict will say so")
    return found


def _judge(detector: Detector, batch: list[tuple[KnownImage, Picture]], scored: Scored) -> None:
    verdicts = detector.judge([picture for _, picture in batch])
    for (image, _), verdict in zip(batch, verdicts, strict=True):
        scored.odds.append(verdict.log_odds)
        scored.generated.append(image.is_generated)
        scored.groups.append(image.group)


def _picture(detector: Detector, image: KnownImage) -> Picture | str:
    """The picture, or in a word why there is none."""
    if isinstance(image.data, ImageRejected):
        return image.data.reason
    try:
        picture = decode_picture(image.data)
    except ImageRejected as rejected:
        return rejected.reason
    return "of a refused shape" if detector.refusal(picture) else picture


def _was_trained_on(run: Path, data: str) -> bool:
    """Whether a run's record names this dataset or holds a file of it."""
    record = read_run_json(run) or {}
    named = (record.get("config") or {}).get("data")
    hashes = record.get("data_sha256") or {}
    return str(named) == data or bool(set(hashes.values()) & set(data_hashes(data).values()))


def _told(calibration: Calibration) -> str:
    if calibration.max_fpr is None:
        return (
            f"temperature {calibration.temperature:.2f}, threshold {calibration.threshold:.3f}, "
            f"unsure from {calibration.unsure_low:.3f} to {calibration.unsure_high:.3f}"
        )
    found = f", {percent(calibration.tpr)} of the generated images are found" if calibration.tpr is not None else ""
    reached, bound = percent(calibration.reached or 0), percent(calibration.bound or 0)
    return (
        f"threshold {calibration.threshold:.4g}; {reached} of {calibration.n_real} photos exceed it, and of new ones "
        f"like them at most {bound} ({percent(calibration.confidence or 0)} confidence){found}"
    )


def _left_out(scored: Scored, images: KnownImages) -> str:
    photos = scored.generated.count(False)
    described = [f"{count} {reason}" for reason, count in scored.unread.items()]
    distinct = len({group for group, made in zip(scored.groups, scored.generated, strict=True) if not made})
    repeats = f"; {photos - distinct} photos repeat another or its source and count once" if distinct < photos else ""
    return (f"; left out: {', '.join(described)}" if described else "") + repeats
