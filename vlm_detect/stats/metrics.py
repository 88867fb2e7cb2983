"""Metrics of a detector from labels and scores, for one sample and for many resamples at once.

    figures(y, p)                    # {"auroc": ..., "ece": ...}: point estimates, by scikit-learn where available
    weighted_figures(y, p, weights)  # the same for each row of weights (B, n): vectorised for the bootstrap

    @metric("youden", "Youden's J")  # a custom metric: a function of a `Sample`
    def youden(sample: Sample) -> Array: return sample.tpr + sample.tnr - 1

`y` is 1 for generated, `p` the probability of that in [0, 1]. A weight is the number of times an item was sampled. An
undefined metric (one class only) is NaN here and null in files. A test checks that the two functions agree for weights
of one.

Definitions: FPR at 95 % TPR is the lowest false-positive rate among thresholds with a true-positive rate of at least
0.95; TPR at x FPR is the highest true-positive rate among thresholds with an FPR of at most x; no interpolation. ECE
has ten equal bins of p: sum over bins of (share of items) * |mean p - share of generated|.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray
from sklearn import metrics as sk

from vlm_detect.plugins import Registry

Array = NDArray[np.float64]
THRESHOLD = 0.5
ECE_BINS = 10


class Curves(NamedTuple):
    """Points of the ROC and precision-recall curves, one per distinct score, highest first: ties share a point."""

    pos_bu: Array  # (B, U): generated at each score
    neg_bu: Array
    tp: Array  # (B, U): generated at this score and above
    fp: Array
    pos: Array  # (B,): all generated
    neg: Array
    tpr: Array  # (B, U)
    fpr: Array


@dataclass(frozen=True)
class Sample:
    """Labels and scores (n,), and B resamples of them as `weights` (B, n); derived values are (B,)."""

    y: Array
    p: Array
    weights: Array
    threshold: float = THRESHOLD

    @cached_property
    def said(self) -> Array:
        """(n,): 1 where the decision is generated."""
        return (self.p >= self.threshold).astype(float)

    @cached_property
    def pos(self) -> Array:
        return self.weights @ self.y

    @cached_property
    def neg(self) -> Array:
        return self.weights @ (1 - self.y)

    @cached_property
    def tp(self) -> Array:
        return self.weights @ (self.y * self.said)

    @cached_property
    def fp(self) -> Array:
        return self.weights @ ((1 - self.y) * self.said)

    @property
    def tpr(self) -> Array:
        return self.tp / self.pos

    @property
    def tnr(self) -> Array:
        return (self.neg - self.fp) / self.neg

    @cached_property
    def curves(self) -> Curves:
        order = np.argsort(-self.p, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(self.p[order]) != 0])
        weights, y = self.weights[:, order], self.y[order]
        pos_bu = np.add.reduceat(weights * y, starts, axis=1)
        neg_bu = np.add.reduceat(weights * (1 - y), starts, axis=1)
        tp, fp = pos_bu.cumsum(axis=1), neg_bu.cumsum(axis=1)
        pos, neg = tp[:, -1], fp[:, -1]
        return Curves(pos_bu, neg_bu, tp, fp, pos, neg, tp / pos[:, None], fp / neg[:, None])

    def where_both(self, values: Array) -> Array:
        """`values` (B,), NaN in resamples of one class."""
        return np.where((self.curves.pos > 0) & (self.curves.neg > 0), values, np.nan)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        compute: from a `Sample` to (B,); NaN where undefined.
        label: its name in reports.
        needs_scores: it needs probabilities, not only decisions.
        biased: it is biased upwards in resamples, which its interval corrects.
    """

    compute: Callable[[Sample], Array]
    label: str
    needs_scores: bool = False
    biased: bool = False


METRICS: Registry[Metric] = Registry("metric", [])


def metric(
    name: str, label: str, *, needs_scores: bool = False, biased: bool = False
) -> Callable[[Callable[[Sample], Array]], Callable[[Sample], Array]]:
    """Register a function of a `Sample` as a metric; the arguments are those of `Metric`."""

    def register(compute: Callable[[Sample], Array]) -> Callable[[Sample], Array]:
        METRICS.add(name, Metric(compute, label, needs_scores, biased), compute)
        return compute

    return register


@metric("balanced_accuracy", "Balanced accuracy")
def balanced_accuracy(sample: Sample) -> Array:
    return (sample.tpr + sample.tnr) / 2


@metric("tpr", "Generated images detected (TPR)")
def tpr(sample: Sample) -> Array:
    return sample.tpr


@metric("tnr", "Photos accepted (TNR)")
def tnr(sample: Sample) -> Array:
    return sample.tnr


@metric("f1", "F1")
def f1(sample: Sample) -> Array:
    return np.where(sample.pos > 0, 2 * sample.tp / (sample.pos + sample.tp + sample.fp), np.nan)


@metric("auroc", "AUROC", needs_scores=True)
def auroc(sample: Sample) -> Array:
    c = sample.curves
    return sample.where_both((c.neg_bu * (c.tp - c.pos_bu / 2)).sum(axis=1) / (c.pos * c.neg))


@metric("ap", "Average precision", needs_scores=True)
def ap(sample: Sample) -> Array:
    c = sample.curves
    precision = np.where(c.tp + c.fp > 0, c.tp / np.maximum(c.tp + c.fp, 1e-300), 0.0)
    return sample.where_both((precision * c.pos_bu).sum(axis=1) / c.pos)


@metric("fpr_at_95_tpr", "FPR at 95 % TPR", needs_scores=True)
def fpr_at_95_tpr(sample: Sample) -> Array:
    c = sample.curves
    return sample.where_both(np.where(c.tpr >= 0.95, c.fpr, 1.0).min(axis=1))


# A ROC curve starts at (0, 0), with a threshold above every score: hence the minimum of 0.
@metric("tpr_at_1_fpr", "TPR at 1 % FPR", needs_scores=True)
def tpr_at_1_fpr(sample: Sample) -> Array:
    c = sample.curves
    return sample.where_both(np.where(c.fpr <= 0.01, c.tpr, 0.0).max(axis=1))


@metric("tpr_at_01_fpr", "TPR at 0.1 % FPR", needs_scores=True)
def tpr_at_01_fpr(sample: Sample) -> Array:
    c = sample.curves
    return sample.where_both(np.where(c.fpr <= 0.001, c.tpr, 0.0).max(axis=1))


@metric("ece", "Calibration error (ECE)", needs_scores=True, biased=True)
def ece(sample: Sample) -> Array:
    in_bin = np.eye(ECE_BINS)[_bins(sample.p, ECE_BINS)]  # (n, bins)
    gap = np.abs(sample.weights @ (in_bin * (sample.p - sample.y)[:, None]))  # (B, bins): weight * |mean p - share|
    return gap.sum(axis=1) / sample.weights.sum(axis=1)


@metric("brier", "Brier score", needs_scores=True)
def brier(sample: Sample) -> Array:
    return sample.weights @ ((sample.p - sample.y) ** 2) / sample.weights.sum(axis=1)


def figure_names(*, scores: bool = True) -> list[str]:
    """The names of all metrics; without `scores` those defined for decisions."""
    return [name for name, one in METRICS.items() if scores or not one.needs_scores]


def figure_labels() -> dict[str, str]:
    """{name: name in reports} of every metric, the accuracy of all items first."""
    return {"accuracy": "Accuracy", **{name: one.label for name, one in METRICS.items()}}


def biased_points(points: Mapping[str, float]) -> dict[str, float]:
    """The `points` of metrics whose intervals have to be corrected for bias (`stats.intervals.bootstrap`)."""
    return {name: points[name] for name, one in METRICS.items() if one.biased}


def logit(p: float, least: float = 1e-12) -> float:
    """The log-odds of a probability, which is clipped to at least `least` from 0 and 1."""
    return float(scipy.special.logit(min(max(p, least), 1 - least)))


def figures(y: Array, p: Array, *, threshold: float = THRESHOLD) -> dict[str, float]:
    """Every metric for one sample; NaN where undefined."""
    y = np.asarray(y, dtype=float)
    p = np.asarray(p, dtype=float)
    found = dict.fromkeys(figure_names(), np.nan)
    if not len(y):
        return found
    said = p >= threshold
    both = 0 < y.sum() < len(y)
    if y.sum():
        found["tpr"] = float(sk.recall_score(y, said, pos_label=1, zero_division=np.nan))
    if y.sum() < len(y):
        found["tnr"] = float(sk.recall_score(y, said, pos_label=0, zero_division=np.nan))
    found["f1"] = float(sk.f1_score(y, said, zero_division=np.nan)) if y.sum() else np.nan
    found["ece"] = expected_calibration_error(y, p)
    found["brier"] = float(np.mean((p - y) ** 2))
    if both:
        found["balanced_accuracy"] = float(sk.balanced_accuracy_score(y, said))
        found["auroc"] = float(sk.roc_auc_score(y, p))
        found["ap"] = float(sk.average_precision_score(y, p))
        false, true, _ = sk.roc_curve(y, p, drop_intermediate=False)
        found["fpr_at_95_tpr"] = float(false[true >= 0.95].min())
        found["tpr_at_1_fpr"] = float(true[false <= 0.01].max())
        found["tpr_at_01_fpr"] = float(true[false <= 0.001].max())
    others = weighted_figures(y, p, np.ones((1, len(y))), threshold=threshold, names=set(METRICS) - set(METRICS.own))
    return found | {name: float(value) for name, (value,) in others.items()}


def expected_calibration_error(y: Array, p: Array) -> float:
    return float(ece(Sample(np.asarray(y, float), np.asarray(p, float), np.ones((1, len(y)))))[0])


def reliability(y: Array, p: Array, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """(mean p, share of generated, items) of each non-empty bin: the reliability diagram."""
    bin_of = _bins(np.asarray(p, float), bins)
    rows = []
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            rows.append((float(np.mean(p[inside])), float(np.mean(y[inside])), int(inside.sum())))
    return rows


def weighted_figures(
    y: Array, p: Array, weights: Array, *, threshold: float = THRESHOLD, names: Collection[str] | None = None
) -> dict[str, Array]:
    """Every metric (or those of `names`) for each row of `weights` (B, n): (B,), NaN where undefined."""
    sample = Sample(np.asarray(y, float), np.asarray(p, float), weights, threshold)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: METRICS[name].compute(sample) for name in (figure_names() if names is None else names)}


def _bins(p: Array, bins: int) -> NDArray[np.intp]:
    return np.clip((p * bins).astype(int), 0, bins - 1)
