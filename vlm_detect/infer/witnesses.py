"""The witnesses of a run: its language model, a head on the tower's features, and a CNN; `fusion.json` weighs them.

    witnesses = Witnesses.load("runs/moondream_lora", engine)         # a run without a fusion: the language model alone
    witnesses.log_odds(images)                                        # (N,) fused log-odds of "generated", in nats
    witnesses.others(images)[0].odds                                  # {"head": 1.2, "expert": 0.4}

The head reads features of images that the engine has just encoded. An expert's log-odds are those of its own
calibration, so that one CNN can stand in for another (`--expert RUN`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlm_detect.config import file_sha256
from vlm_detect.errors import UserError
from vlm_detect.infer.backbone import Backbone
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.fusion import FILE as FUSION_FILE
from vlm_detect.infer.fusion import Fusion, Witness
from vlm_detect.infer.head import FILE as HEAD_FILE
from vlm_detect.infer.head import Head, probe_image
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.experts import WEIGHTS, load_expert
from vlm_detect.stats.conformal import least_n

log = logging.getLogger(__name__)
LANGUAGE_MODEL, HEAD, EXPERT = "language_model", "head", "expert"


class WitnessScores(NamedTuple):
    """What the other witnesses say of one image: log-odds of "generated" in nats, and how strange it is."""

    odds: dict[str, float]
    novelty_p: float | None = None  # None: not judged


@dataclass(frozen=True)
class Expert:
    """A CNN as a witness; `source` is its run's path and its weights' sha256."""

    detector: CnnDetector
    source: tuple[str, str]

    @classmethod
    def load(cls, run: str | Path, engine: Engine) -> Expert:
        """`UserError` where the run is no CNN's, or one that was trained for another task."""
        expert = load_expert(run, engine.vlm.device)
        return cls(expert.detector, (expert.path, expert.sha256))

    def log_odds(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Log-odds of "generated" (N,) in nats, by the CNN's own calibration."""
        calibration = self.detector.calibration
        return (self.detector.scores(images).odds - calibration.bias) / calibration.temperature


@dataclass(frozen=True)
class Witnesses:
    """`fusion` says which of them count; a head that is no witness still says how strange an image is."""

    engine: Engine
    fusion: Fusion = field(default_factory=Fusion.alone)
    head: Head | None = None
    backbone: Backbone | None = None
    expert: Expert | None = None

    @classmethod
    def load(cls, run: str | Path, engine: Engine, expert: str | None = None) -> Witnesses:
        """Those of a run directory; `expert` is a CNN's run in place of the one that its fusion names.

        Raises:
            UserError: where a witness is missing, has changed since the fusion was fitted, or is another tower's.
        """
        run = Path(run)
        fusion, head = Fusion.load(run), Head.load(run)
        if expert and (fusion is None or fusion.expert is None):
            raise UserError(
                f"--expert {expert}: {run} has no weight for an expert; vlm-detect fit-head {run} finds one"
            )
        if fusion is None and head is None:
            return cls(engine)
        fusion = fusion or Fusion.alone()
        if any(witness.name == HEAD for witness in fusion.witnesses):
            _check_unchanged(fusion, HEAD, run / HEAD_FILE, run)
        found = cls(engine, fusion, head, backbone_of(head), cls._expert(fusion, run, engine, expert))
        if head is not None:
            found._check_head(head, run)
        return found

    @classmethod
    def _expert(cls, fusion: Fusion, run: Path, engine: Engine, given: str | None) -> Expert | None:
        stated = fusion.expert
        if stated is None:
            return None
        if given is None:
            _check_unchanged(fusion, EXPERT, Path(stated.path) / WEIGHTS, run)
        return Expert.load(given or stated.path, engine)

    def _check_head(self, head: Head, run: Path) -> None:
        try:
            head.check_tower(self.features([probe_image()], head))
        except UserError as error:
            raise UserError(f"{run / HEAD_FILE}: {error} {run}") from error
        if not head.can_judge_novelty(self.fusion.novelty_level):
            log.warning(
                "%s: says of no image that it is unlike all that it knows: %d ordinary images, of which a level of "
                "%g %% needs %d",
                run / HEAD_FILE,
                len(head.ordinary),
                100 * self.fusion.novelty_level,
                least_n(self.fusion.novelty_level),
            )

    @property
    def has_stand_in(self) -> bool:
        """Whether another expert speaks than the one that weights and calibration were fitted with."""
        stated = self.fusion.expert
        return stated is not None and self.expert is not None and self.expert.source[1] != stated.sha256

    @property
    def is_fused(self) -> bool:
        return self.fusion.names != [LANGUAGE_MODEL]

    def features(self, images: Sequence[Image.Image], head: Head) -> np.ndarray:
        """What `head` reads of images, (N, F)."""
        return self.backbone.pooled(images) if self.backbone else self.engine.pooled(images)

    def others(self, images: Sequence[Image.Image]) -> list[WitnessScores]:
        """What head and expert say of images; best right after the engine was asked about them."""
        odds: dict[str, np.ndarray] = {}
        novelty: list[float | None] = [None] * len(images)
        if self.head is not None and images:
            features = self.features(images, self.head)
            if HEAD in self.fusion.names:
                odds[HEAD] = self.head.log_odds(features)
            if self.head.can_judge_novelty(self.fusion.novelty_level):
                novelty = self.head.novelty(features).tolist()
        if self.expert is not None and images:
            odds[EXPERT] = self.expert.log_odds(images)
        rows = [{name: float(values[i]) for name, values in odds.items()} for i in range(len(images))]
        return [WitnessScores(row, p) for row, p in zip(rows, novelty, strict=True)]

    def log_odds(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Fused log-odds of "generated" (N,) in nats."""
        found: list[float] = []
        for some in self.engine.images_at_once.batches(images):  # the engine keeps what a head reads
            for own, other in zip(log_odds(self.engine, some), self.others(some), strict=True):
                found.append(float(self.fusion.log_odds({LANGUAGE_MODEL: own, **other.odds})))
        return np.array(found)


def backbone_of(head: Head | None) -> Backbone | None:
    """The vision model whose features a head reads; None for a run's own tower."""
    name = head.about.get("backbone") if head else None
    return Backbone.load(name) if name else None


def _check_unchanged(fusion: Fusion, name: str, path: Path, run: Path) -> None:
    """`UserError` where what a weight was fitted for is missing or another file now."""
    witness: Witness = next(one for one in fusion.witnesses if one.name == name)
    remedy = "" if name == HEAD else "give its place, or another, with --expert RUN, or "
    if not path.is_file():
        raise UserError(f"{run / FUSION_FILE} weighs {path}, which is missing: {remedy}vlm-detect fit-head {run}")
    if witness.sha256 and file_sha256(path) != witness.sha256:
        raise UserError(f"{path} has changed since {run / FUSION_FILE} weighed it: {remedy}vlm-detect fit-head {run}")
