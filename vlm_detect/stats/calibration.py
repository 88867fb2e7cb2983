"""From a model's log-odds to a probability, a verdict and an honest "unsure": fitted on validation, never on test.

    calibration = fit(odds, generated)              # odds of "generated" in nats, and the truth
    calibration.save(run); Calibration.load(run)    # calibration.json next to the adapter
    p = calibration.p_fake(odds); calibration.label(p)
    strict = calibration.guaranteeing(0.01)            # the threshold that calls at most 1 % of photos generated
    calibration.fit_photos(odds_real, 0.01)         # the same, of photos of one's own

p_fake = sigmoid((log-odds - bias) / temperature): Platt's scaling with his softened targets (Platt 1999; Guo et al.
2017, arXiv 1706.04599, without the bias), so that a separable validation set does not drive the temperature to zero.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.images.decode import DECODER
from vlm_detect.schema import check_schema, with_schema
from vlm_detect.stats.guarantee import CONFIDENCE, PhotoScores
from vlm_detect.stats.metrics import logit
from vlm_detect.stats.reliability import doubt

log = logging.getLogger(__name__)
FILE = "calibration.json"
SURE_ACCURACY = 0.95  # outside the unsure band, at least this part of the validation verdicts is right
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """`threshold` is in p_fake; between `unsure_low` and `unsure_high` (which include it) the verdict is "unsure".

    With a guaranteed rate `max_fpr`, `reached` is the part of the photos that it was chosen on that the threshold calls
    generated, `bound` the limit for new photos at the stated `confidence`, and `tpr` the part of generated images that
    it finds, where there were some.
    """

    temperature: float = 1.0
    bias: float = 0.0  # log-odds at which both classes are as likely, in nats
    threshold: float = 0.5
    unsure_low: float = 0.5
    unsure_high: float = 0.5
    n: int = 0  # validation images that it was fitted on; 0: nothing was fitted
    decoder: int = 1  # of the images that it was fitted on; files that do not state it are of the first
    reliable: bool = True  # False where there is a `doubt`
    doubt: str = ""  # a sentence: why the images that it was fitted on do not show that the model beats chance
    max_fpr: float | None = None
    reached: float | None = None
    bound: float | None = None
    confidence: float | None = None
    tpr: float | None = None
    n_real: int = 0  # photos among the images, of as many groups: those behind the guarantee
    real_quantiles: tuple[tuple[int, float], ...] = ()  # of their log-odds, as in `PhotoScores`

    @property
    def is_outdated(self) -> bool:
        """Whether it was fitted on images that are decoded otherwise now."""
        return self.n > 0 and self.decoder != DECODER

    def p_fake(self, odds: np.ndarray | float) -> np.ndarray:
        """Calibrated probability that an image is generated, of its log-odds in nats."""
        return expit((np.asarray(odds) - self.bias) / self.temperature)

    def margin(self, odds: np.ndarray | float) -> np.ndarray:
        """By how many nats log-odds lie above the threshold."""
        return np.asarray(odds) - (self.bias + self.temperature * logit(self.threshold))

    def label(self, p_fake: float) -> Literal["real", "generated", "unsure"]:
        if self.unsure_low < p_fake < self.unsure_high:
            return "unsure"
        return "generated" if p_fake > self.threshold else "real"

    def guaranteeing(self, max_fpr: float) -> Calibration:
        """The same with the threshold that guarantees `max_fpr`, chosen on the photos that it was fitted on.

        The band keeps its width in log-odds and lies below the threshold: what exceeds it is called generated, as the
        guarantee counts it. `UserError` where the photos cannot guarantee that rate.
        """
        if not self.n_real:
            raise UserError(
                f"--max_fpr {max_fpr:g}: this model has no scores of photos to choose a threshold from; vlm-detect "
                "calibrate RUN --data PHOTOS stores them"
            )
        cut = PhotoScores(self.n_real, self.real_quantiles).cut(max_fpr)
        width = logit(self.threshold) - logit(self.unsure_low)
        threshold = float(self.p_fake(cut.log_odds))
        return replace(
            self,
            threshold=threshold,
            unsure_low=float(expit(logit(threshold) - width)) if width else threshold,
            unsure_high=threshold,
            max_fpr=max_fpr,
            reached=cut.reached,
            bound=cut.bound,
            confidence=CONFIDENCE,
            tpr=None,
        )

    def at_threshold(self, threshold: float) -> Calibration:
        """The same with a threshold in p_fake of one's own choice: no unsure band around it, and no guarantee."""
        unguaranteed = replace(self, max_fpr=None, reached=None, bound=None, confidence=None, tpr=None)
        return replace(unguaranteed, threshold=threshold, unsure_low=threshold, unsure_high=threshold)

    def without_guarantee(self) -> Calibration:
        """The same for scores of another origin than those of its photos, which guarantee nothing of them."""
        unguaranteed = replace(self, max_fpr=None, reached=None, bound=None, confidence=None, tpr=None)
        return replace(unguaranteed, n_real=0, real_quantiles=())

    def fit_photos(self, odds: np.ndarray, max_fpr: float, groups: Sequence[str] | None = None) -> Calibration:
        """The same probabilities with a threshold for these photos' log-odds (N,); `groups` as in `fit`."""
        scores = PhotoScores.from_odds(_one_a_group(odds, groups))
        n, quantiles = scores.n, scores.quantiles
        return replace(self, n=n, n_real=n, real_quantiles=quantiles, decoder=DECODER).guaranteeing(max_fpr)

    def operating_point(self) -> dict[str, Any]:
        """Everything but the photos' scores, as a record of what verdicts rest on."""
        return {name: value for name, value in asdict(self).items() if name not in ("n_real", "real_quantiles")}

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, with_schema("calibration", asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """The calibration next to an adapter, or one that changes nothing where there is none."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            check_schema("calibration", record, path)
            values = {name: value for name, value in record.items() if name != "schema"}
            quantiles = tuple((int(rank), float(odds)) for rank, odds in values.pop("real_quantiles", ()))
            found = cls(**values, real_quantiles=quantiles)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a calibration ({error}); refit it with vlm-detect calibrate") from error
        if found.is_outdated:
            log.warning(
                "%s was fitted by an earlier version, to which images that are stored turned, transparent, in 16 bits "
                "or with a colour profile looked otherwise; if yours are such: vlm-detect calibrate %s --data DATASET",
                path,
                folder,
            )
        return found


def fit(
    odds: np.ndarray, generated: np.ndarray, max_fpr: float | None = None, groups: Sequence[str] | None = None
) -> Calibration:
    """Temperature and bias by log loss, threshold by balanced accuracy, or with `max_fpr` the one that guarantees it.

    `groups` (N,) are the source photos, of which intervals and guarantees count one image each; without them every
    image is one of its own. Where the model is at chance on these images, the calibration is not `reliable`.
    """
    odds, generated = np.asarray(odds, dtype=float), np.asarray(generated, dtype=bool)
    if generated.all() or not generated.any():
        raise UserError("calibration needs both real and generated images; one of the classes is missing")
    names = [str(group) for group in (groups if groups is not None else range(len(odds)))]
    temperature, bias = _fit_scale(odds, generated)
    real = [name for name, is_generated in zip(names, generated, strict=True) if not is_generated]
    photos = PhotoScores.from_odds(_one_a_group(odds[~generated], real))
    guaranteed = photos.cut(max_fpr) if max_fpr is not None else None
    cut = guaranteed.log_odds if guaranteed else _best_cut(odds, generated)
    low, high = unsure_band(odds - cut, generated, above=guaranteed is None)
    edges = expit((np.array([cut, cut + low, cut + high]) - bias) / temperature)
    threshold, unsure_low, unsure_high = edges.tolist()
    doubtful = doubt(odds, generated, names, at_bound=_is_at_bound(temperature))
    return Calibration(
        temperature,
        bias,
        threshold,
        unsure_low,
        unsure_high,
        len(odds),
        DECODER,
        reliable=not doubtful,
        doubt=doubtful,
        max_fpr=max_fpr,
        reached=guaranteed.reached if guaranteed else None,
        bound=guaranteed.bound if guaranteed else None,
        confidence=CONFIDENCE if guaranteed else None,
        tpr=float((odds[generated] > cut).mean()) if guaranteed else None,
        n_real=photos.n,
        real_quantiles=photos.quantiles,
    )


def _fit_scale(odds: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Temperature and bias with the least log loss; the temperature stays positive and within its bounds."""
    n_generated, n_real = generated.sum(), (~generated).sum()
    targets = np.where(generated, (n_generated + 1) / (n_generated + 2), 1 / (n_real + 2))

    def log_loss(parameters: np.ndarray) -> float:
        scaled = parameters[0] * odds + parameters[1]
        return float(np.mean(targets * np.logaddexp(0, -scaled) + (1 - targets) * np.logaddexp(0, scaled)))

    low, high = _TEMPERATURES
    slope, offset = minimize(log_loss, x0=[1.0, 0.0], bounds=[(1 / high, 1 / low), (None, None)]).x
    return float(1 / slope), float(-offset / slope)


def _best_cut(odds: np.ndarray, generated: np.ndarray) -> float:
    """The log-odds with the best balanced accuracy; of several in a row, the middle."""
    values = np.unique(odds)
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    right = [(odds[generated] > cut).mean() + (odds[~generated] <= cut).mean() for cut in cuts]
    best = np.flatnonzero(np.isclose(right, max(right)))
    return float(cuts[best[len(best) // 2]])


def _one_a_group(odds: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """The first of each group: further images of one photo are no evidence of their own."""
    values = np.asarray(odds, dtype=float)
    return values if groups is None else values[np.unique(np.asarray(groups, dtype=str), return_index=True)[1]]


def _is_at_bound(temperature: float) -> bool:
    """Whether the least log loss lies outside of what is allowed: the odds run against the truth, or say nothing."""
    return bool(np.isclose(temperature, _TEMPERATURES, rtol=1e-3).any())


def unsure_band(margin: np.ndarray, generated: np.ndarray, *, above: bool) -> tuple[float, float]:
    """(low, high) around the cut at 0, in nats: the narrowest outside of which `SURE_ACCURACY` of verdicts are right.

    Symmetric, or where not `above` with nothing above the cut.
    """
    right = (margin > 0) == generated
    if right.mean() >= SURE_ACCURACY:
        return 0.0, 0.0
    distance = np.abs(margin) if above else np.where(margin > 0, np.inf, -margin)
    order = np.argsort(-distance)
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    sure = np.flatnonzero(accuracy >= SURE_ACCURACY)
    last = int(sure[-1]) if len(sure) else -1
    ordered = distance[order]
    kept = int(np.isinf(ordered).sum())  # verdicts that stay, however often they are right
    if last < kept:
        return (-2 * ordered[kept] - 1, 2 * ordered[kept] + 1 if above else 0.0)
    half = float((ordered[last] + ordered[last + 1]) / 2)
    return -half, half if above else 0.0
