"""The area under the ROC curve of an out-of-fold score, with a confidence interval over groups.

Folds keep a source photo's images together. The interval is Newcombe's (Statistics in Medicine 25, 2006, method 5), the
score interval with Hanley and McNeil's variance; it remains valid at an area of 1 and for few images, where a bootstrap
degenerates. Images of one photo are not independent: the ratio of the variance over groups (Obuchowski, Biometrics 53,
1997) to that over single images gives the effective sample size.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from vlm_detect.stats.metrics import Array

FOLDS = 5
_MANY = 2000  # groups; above this number, random folds are stratified well enough, and faster

Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def make_folds(y: Array, groups: NDArray[np.intp]) -> Folds:
    """(train, test) indices, grouped and stratified; empty if a class has fewer than two groups."""
    folds = min(FOLDS, *(len(set(groups[y == label].tolist())) for label in (0, 1)))
    if folds < 2:
        return []
    if len(set(groups.tolist())) > _MANY:
        return list(GroupKFold(folds, shuffle=True, random_state=0).split(y, y, groups))
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(y, y, groups))


def auc(scores: Array, y: Array) -> float:
    """The probability that an image of class 1 has a higher score than one of class 0; ties count half."""
    ranks = rankdata(scores)
    ones = int(y.sum())
    zeros = len(y) - ones
    return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auc_interval(scores: Array, y: Array, groups: NDArray[np.intp], alpha: float) -> tuple[float, float]:
    """The confidence interval of level 1 - `alpha`, with groups as the independent unit."""
    area, effect = auc(scores, y), design_effect(scores, y, groups)
    ones, zeros = y.sum() / effect, (len(y) - y.sum()) / effect
    z = float(norm.isf(alpha / 2))

    def beyond(theta: float) -> float:
        return abs(area - theta) - z * math.sqrt(hanley_mcneil(theta, ones, zeros))

    edge = 1e-7  # `beyond` changes its sign between here and the observed area
    low = brentq(beyond, edge, area - edge) if area > 2 * edge and beyond(edge) > 0 else 0.0
    high = brentq(beyond, area + edge, 1 - edge) if area < 1 - 2 * edge and beyond(1 - edge) > 0 else 1.0
    return float(low), float(high)


def hanley_mcneil(theta: float, ones: float, zeros: float) -> float:
    """Variance of the estimate of a true area `theta` (Radiology 143, 1982), with the mean of both group sizes."""
    half = (ones + zeros) / 2 - 1
    spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return theta * (1 - theta) * (1 + max(0.0, half) * spread) / (ones * zeros)


def design_effect(scores: Array, y: Array, groups: NDArray[np.intp]) -> float:
    """The design effect: the variance over groups divided by that over single images; at least 1."""
    place = rankdata(scores)
    influence = np.zeros(len(y))  # influence of each image on the area
    for label in (0, 1):
        mine, others = y == label, y != label
        below = (place[mine] - rankdata(scores[mine])) / others.sum()  # the share of the other class below
        influence[mine] = (below - below.mean()) / mine.sum()
    alone = float((influence**2).sum())
    together = float((np.bincount(groups, influence) ** 2).sum())
    return max(1.0, together / alone) if alone > 0 else 1.0
