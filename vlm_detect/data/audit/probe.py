"""A probe: how well a small classifier tells two classes apart, on photos it has not seen, and how sure that is.

The score is the area under the ROC curve. Folds keep a source photo's images together. Its interval is Newcombe's
(Statistics in Medicine 25, 2006, method 5): the areas from which the one found is no further than chance would put it,
with Hanley and McNeil's variance; it stays sensible at an area of 1 and for few images, where a bootstrap has nothing
to draw. Images of one photo are no independent evidence: the variance of whole groups (Obuchowski, Biometrics 53, 1997)
over that of single images says by how much fewer they count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
_TREES = 24
_FEW = 64  # features; with more, a line through them all beats trees that each ask a few

Array = NDArray[np.float64]
Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def make_folds(y: Array, groups: NDArray[np.intp]) -> Folds:
    """(train, test) places: groups whole, classes in proportion; empty where a class has fewer than two groups."""
    folds = min(FOLDS, *(len(set(groups[y == label].tolist())) for label in (0, 1)))
    if folds < 2:
        return []
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(y, y, groups))


def cross_validate(values: Sequence[Any], y: Array, folds: Folds) -> Array:
    """(n,) each image's score from a classifier that has not seen its photo: its rank within its fold, in (0, 1).

    `values` are features by name, or texts. Ranks, because the scores of two classifiers are on no common scale.
    """
    scores = np.full(len(y), 0.5)
    if all(value == values[0] for value in values):
        return scores
    if isinstance(values[0], str):
        matrix, model = list(values), _text_model()
    else:
        matrix = DictVectorizer(sparse=False).fit_transform(values)
        model = _forest() if matrix.shape[1] <= _FEW else _line()
    for train, test in folds:
        if len(set(y[train].tolist())) < 2:  # groups of both classes, few and unequal, may leave one to a fold
            continue
        try:
            model.fit(_at(matrix, train), y[train])
        except ValueError:  # no word occurs twice: the captions tell nothing
            continue
        judged = model.predict_proba(_at(matrix, test))[:, 1].round(9)
        scores[test] = (rankdata(judged) - 0.5) / len(test)
    return scores


def _at(matrix: Any, places: NDArray[np.intp]) -> Any:
    return [matrix[i] for i in places] if isinstance(matrix, list) else matrix[places]


def _forest() -> Any:
    return RandomForestClassifier(_TREES, min_samples_leaf=3, max_depth=12, random_state=0)


def _line() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=200))


def _text_model() -> Pipeline:
    words = CountVectorizer(ngram_range=(1, 2), min_df=2, max_features=20_000, binary=True)
    return make_pipeline(words, LogisticRegression(C=0.3, max_iter=300))


def auc(scores: Array, y: Array) -> float:
    """How often an image of class 1 has the higher score than one of class 0; a tie is half."""
    ranks = rankdata(scores)
    ones = int(y.sum())
    zeros = len(y) - ones
    return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auc_interval(scores: Array, y: Array, groups: NDArray[np.intp], alpha: float) -> tuple[float, float]:
    """The interval that holds the true area with probability 1 - `alpha`, groups being the independent unit."""
    area, effect = auc(scores, y), design_effect(scores, y, groups)
    ones, zeros = y.sum() / effect, (len(y) - y.sum()) / effect
    z = float(norm.isf(alpha / 2))

    def beyond(theta: float) -> float:
        return abs(area - theta) - z * math.sqrt(hanley_mcneil(theta, ones, zeros))

    edge = 1e-7  # between here and the area found, `beyond` changes its sign
    low = brentq(beyond, edge, area - edge) if area > 2 * edge and beyond(edge) > 0 else 0.0
    high = brentq(beyond, area + edge, 1 - edge) if area < 1 - 2 * edge and beyond(1 - edge) > 0 else 1.0
    return float(low), float(high)


def hanley_mcneil(theta: float, ones: float, zeros: float) -> float:
    """Variance of an area whose true value is `theta` (Radiology 143, 1982), with the mean of both group sizes."""
    half = (ones + zeros) / 2 - 1
    spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return theta * (1 - theta) * (1 + max(0.0, half) * spread) / (ones * zeros)


def design_effect(scores: Array, y: Array, groups: NDArray[np.intp]) -> float:
    """By how much groups vary more than as many single images would; at least 1."""
    place = rankdata(scores)
    influence = np.zeros(len(y))  # of each image on the area
    for label in (0, 1):
        mine, others = y == label, y != label
        below = (place[mine] - rankdata(scores[mine])) / others.sum()  # the share of the others that lie below
        influence[mine] = (below - below.mean()) / mine.sum()
    alone = float((influence**2).sum())
    together = float((np.bincount(groups, influence) ** 2).sum())
    return max(1.0, together / alone) if alone > 0 else 1.0
