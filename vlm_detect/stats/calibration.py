"""From a model's log-odds to a probability, a verdict and an honest "unsure": fitted on validation, never on test.

    calibration = fit(odds, generated)              # odds of "generated" in nats, and the truth
    calibration.save(run); Calibration.load(run)    # calibration.json next to the adapter
    p = calibration.p_fake(odds); calibration.label(p)

p_fake = sigmoid((log-odds - bias) / temperature): Platt's scaling with his softened targets (Platt 1999; Guo et al.
2017, arXiv 1706.04599, without the bias), so that a separable validation set does not drive the temperature to zero.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.images.decode import DECODER
from vlm_detect.schema import check_schema, with_schema

log = logging.getLogger(__name__)
FILE = "calibration.json"
SURE_ACCURACY = 0.95  # outside the unsure band, at least this part of the validation verdicts is right
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """`threshold` is in p_fake; between `unsure_low` and `unsure_high` (which include it) the verdict is "unsure"."""

    temperature: float = 1.0
    bias: float = 0.0  # log-odds at which both classes are as likely, in nats
    threshold: float = 0.5
    unsure_low: float = 0.5
    unsure_high: float = 0.5
    n: int = 0  # validation images that it was fitted on; 0: nothing was fitted
    decoder: int = 1  # of the images that it was fitted on; files that do not state it are of the first

    @property
    def is_outdated(self) -> bool:
        """Whether it was fitted on images that are decoded otherwise now."""
        return self.n > 0 and self.decoder != DECODER

    def p_fake(self, odds: np.ndarray | float) -> np.ndarray:
        """Calibrated probability that an image is generated, of its log-odds in nats."""
        return expit((np.asarray(odds) - self.bias) / self.temperature)

    def label(self, p_fake: float) -> Literal["real", "generated", "unsure"]:
        if self.unsure_low < p_fake < self.unsure_high:
            return "unsure"
        return "generated" if p_fake > self.threshold else "real"

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
            found = cls(**{name: value for name, value in record.items() if name != "schema"})
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


def fit(odds: np.ndarray, generated: np.ndarray, max_fpr: float | None = None) -> Calibration:
    """Temperature and bias by log loss, threshold by balanced accuracy.

    With `max_fpr` the threshold is the lowest that at most this part of the real images exceeds.
    """
    odds, generated = np.asarray(odds, dtype=float), np.asarray(generated, dtype=bool)
    if generated.all() or not generated.any():
        raise UserError("calibration needs both real and generated images; one of the classes is missing")
    temperature, bias = _fit_scale(odds, generated)
    cut = _best_cut(odds, generated) if max_fpr is None else _cut_at_fpr(odds[~generated], max_fpr)
    half = _unsure_half_width(odds - cut, generated)
    edges = expit((np.array([cut, cut - half, cut + half]) - bias) / temperature)
    threshold, low, high = edges.tolist()
    return Calibration(temperature, bias, threshold, low, high, len(odds), DECODER)


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


def _cut_at_fpr(odds_real: np.ndarray, max_fpr: float) -> float:
    """The lowest log-odds that at most a `max_fpr` part of the real images exceeds."""
    ordered = np.sort(odds_real)[::-1]
    return float(ordered[min(int(max_fpr * len(ordered)), len(ordered) - 1)])


def _unsure_half_width(margin: np.ndarray, generated: np.ndarray) -> float:
    """The least distance from the cut (0) beyond which `SURE_ACCURACY` of the verdicts are right."""
    right = (margin > 0) == generated
    if right.mean() >= SURE_ACCURACY:
        return 0.0
    order = np.argsort(-np.abs(margin))
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    sure = np.flatnonzero(accuracy >= SURE_ACCURACY)
    last = int(sure[-1]) if len(sure) else -1
    distances = np.abs(margin)[order]
    outer = distances[last] if len(sure) else 2 * distances[0] + 1
    return float((outer + distances[last + 1]) / 2)
