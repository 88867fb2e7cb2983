"""Figures of a detector from labels and scores, for one sample and for many resamples at once.

    figures(y, p)                    # {"auroc": ..., "ece": ...}: the points, by scikit-learn where it has them
    weighted_figures(y, p, weights)  # the same for each row of weights (B, n): what the bootstrap needs, vectorised

`y` is 1 for generated, `p` the probability of that in [0, 1]. A weight is how often an item was drawn. Where a figure
is not defined (one class only) it is NaN here and null in files. The two functions agree for weights of one: a test.

Definitions: FPR at 95 % TPR is the least false-positive rate among the thresholds that reach a true-positive rate of
0.95; TPR at x FPR the greatest true-positive rate among those that stay at or below x; no interpolation. ECE has ten
equal bins of p: sum over bins of (share of items) * |mean p - share of generated|.
"""

from __future__ import annotations

import numpy as np
import scipy.special
from numpy.typing import NDArray
from sklearn import metrics as sk

Array = NDArray[np.float64]
THRESHOLD = 0.5
ECE_BINS = 10
DECISION_FIGURES = ("balanced_accuracy", "tpr", "tnr", "f1")
RANKING_FIGURES = ("auroc", "ap", "fpr_at_95_tpr", "tpr_at_1_fpr", "tpr_at_01_fpr")
CALIBRATION_FIGURES = ("ece", "brier")
ALL_FIGURES = (*DECISION_FIGURES, *RANKING_FIGURES, *CALIBRATION_FIGURES)


def logit(p: float, least: float = 1e-12) -> float:
    """The log-odds of a probability, which is taken to be `least` away from 0 and 1 at least."""
    return float(scipy.special.logit(min(max(p, least), 1 - least)))


def figures(y: Array, p: Array, *, threshold: float = THRESHOLD) -> dict[str, float]:
    """Every figure of `ALL_FIGURES` for one sample; NaN where it is not defined."""
    y = np.asarray(y, dtype=float)
    p = np.asarray(p, dtype=float)
    found = dict.fromkeys(ALL_FIGURES, np.nan)
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
        fpr, tpr, _ = sk.roc_curve(y, p, drop_intermediate=False)
        found["fpr_at_95_tpr"] = float(fpr[tpr >= 0.95].min())
        found["tpr_at_1_fpr"] = float(tpr[fpr <= 0.01].max())
        found["tpr_at_01_fpr"] = float(tpr[fpr <= 0.001].max())
    return found


def expected_calibration_error(y: Array, p: Array) -> float:
    return float(_weighted_ece(np.asarray(y, float), np.asarray(p, float), np.ones((1, len(y))))[0])


def reliability(y: Array, p: Array, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """(mean p, share of generated, items) of each bin that holds any: the reliability diagram."""
    bin_of = _bins(np.asarray(p, float), bins)
    rows = []
    for b in range(bins):
        inside = bin_of == b
        if inside.any():
            rows.append((float(np.mean(p[inside])), float(np.mean(y[inside])), int(inside.sum())))
    return rows


def weighted_figures(y: Array, p: Array, weights: Array, *, threshold: float = THRESHOLD) -> dict[str, Array]:
    """Every figure for each row of `weights` (B, n); values are (B,), NaN where a row has one class only."""
    y, p = np.asarray(y, float), np.asarray(p, float)
    said = (p >= threshold).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        pos, neg = weights @ y, weights @ (1 - y)
        tp, fp = weights @ (y * said), weights @ ((1 - y) * said)
        tpr, tnr = tp / pos, (neg - fp) / neg
        found = {
            "balanced_accuracy": (tpr + tnr) / 2,
            "tpr": tpr,
            "tnr": tnr,
            "f1": np.where(pos > 0, 2 * tp / (pos + tp + fp), np.nan),
        }
        found |= _weighted_ranking(y, p, weights)
        found["ece"] = _weighted_ece(y, p, weights)
        found["brier"] = weights @ ((p - y) ** 2) / weights.sum(axis=1)
    return found


def _weighted_ranking(y: Array, p: Array, weights: Array) -> dict[str, Array]:
    """The ROC and precision-recall figures; a step of the curves is one distinct score, so ties share a step."""
    order = np.argsort(-p, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(p[order]) != 0])
    weights, y = weights[:, order], y[order]
    pos_bu = np.add.reduceat(weights * y, starts, axis=1)  # (B, U): generated at each distinct score, highest first
    neg_bu = np.add.reduceat(weights * (1 - y), starts, axis=1)
    tp, fp = pos_bu.cumsum(axis=1), neg_bu.cumsum(axis=1)
    pos, neg = tp[:, -1:], fp[:, -1:]
    tpr, fpr = tp / pos, fp / neg
    defined = ((pos > 0) & (neg > 0))[:, 0]
    auroc = (neg_bu * (tp - pos_bu / 2)).sum(axis=1) / (pos * neg)[:, 0]
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1e-300), 0.0)
    ap = (precision * pos_bu).sum(axis=1) / pos[:, 0]
    # The curve starts at (0, 0), a threshold above every score: hence the floors of 0 for TPR.
    found = {
        "auroc": auroc,
        "ap": ap,
        "fpr_at_95_tpr": np.where(tpr >= 0.95, fpr, 1.0).min(axis=1),
        "tpr_at_1_fpr": np.where(fpr <= 0.01, tpr, 0.0).max(axis=1),
        "tpr_at_01_fpr": np.where(fpr <= 0.001, tpr, 0.0).max(axis=1),
    }
    return {name: np.where(defined, values, np.nan) for name, values in found.items()}


def _weighted_ece(y: Array, p: Array, weights: Array) -> Array:
    in_bin = np.eye(ECE_BINS)[_bins(p, ECE_BINS)]  # (n, bins)
    gap = np.abs(weights @ (in_bin * (p - y)[:, None]))  # (B, bins): bin weight times |mean p - share of generated|
    return gap.sum(axis=1) / weights.sum(axis=1)


def _bins(p: Array, bins: int) -> NDArray[np.intp]:
    return np.clip((p * bins).astype(int), 0, bins - 1)
