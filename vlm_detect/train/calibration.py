"""From a model's log-odds to a probability, a verdict and an honest "unsure": fitted on validation, never on test.

    calibration = fit(odds, generated)              # odds of "generated" in nats, and the truth
    calibration.save(run); Calibration.load(run)    # calibration.json beside the adapter
    p = calibration.p_fake(odds); calibration.label(p)

p_fake = sigmoid(log-odds / temperature). Temperature: Guo et al. 2017 (arXiv 1706.04599), fitted with Platt's softened
targets, so that a separable validation set does not drive it to zero.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

from vlm_detect.config import write_json
from vlm_detect.errors import UserError

FILE = "calibration.json"
SURE_ACCURACY = 0.95  # outside the unsure band, at least this part of the validation verdicts is right
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """`threshold` is in p_fake; between `unsure_low` and `unsure_high` (which include it) the verdict is "unsure"."""

    temperature: float = 1.0
    threshold: float = 0.5
    unsure_low: float = 0.5
    unsure_high: float = 0.5
    n: int = 0  # validation images that it was fitted on; 0: nothing was fitted

    def p_fake(self, odds: np.ndarray | float) -> np.ndarray:
        """Calibrated probability that an image is generated, of its log-odds in nats."""
        return _sigmoid(np.asarray(odds) / self.temperature)

    def label(self, p_fake: float) -> Literal["real", "generated", "unsure"]:
        if self.unsure_low < p_fake < self.unsure_high:
            return "unsure"
        return "generated" if p_fake > self.threshold else "real"

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """The calibration beside an adapter, or one that changes nothing where there is none."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is not a calibration ({error}); refit it with vlm-detect calibrate") from error


def fit(odds: np.ndarray, generated: np.ndarray, max_fpr: float | None = None) -> Calibration:
    """Temperature by log loss; threshold by balanced accuracy, or the lowest with at most `max_fpr` false positives."""
    odds, generated = np.asarray(odds, dtype=float), np.asarray(generated, dtype=bool)
    if generated.all() or not generated.any():
        raise UserError("calibration needs both real and generated images; one of the classes is missing")
    temperature = _fit_temperature(odds, generated)
    cut = _best_cut(odds, generated) if max_fpr is None else _cut_at_fpr(odds[~generated], max_fpr)
    half = _unsure_half_width(odds - cut, generated)
    threshold, low, high = (float(_sigmoid(value / temperature)) for value in (cut, cut - half, cut + half))
    return Calibration(temperature, threshold, low, high, len(odds))


def _fit_temperature(odds: np.ndarray, generated: np.ndarray) -> float:
    n_generated, n_real = generated.sum(), (~generated).sum()
    targets = np.where(generated, (n_generated + 1) / (n_generated + 2), 1 / (n_real + 2))

    def log_loss(log_temperature: float) -> float:
        scaled = odds / np.exp(log_temperature)
        return float(np.mean(targets * np.logaddexp(0, -scaled) + (1 - targets) * np.logaddexp(0, scaled)))

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(_TEMPERATURES), method="bounded").x))


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
    good = np.flatnonzero(accuracy >= SURE_ACCURACY)
    distances = np.abs(margin)[order]
    return float(distances[good[-1] + 1]) if len(good) else float(distances[0])


def _sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 0.5 * (1 + np.tanh(np.asarray(x) / 2))
