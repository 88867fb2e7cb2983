"""A probe: how well a small classifier separates two classes on unseen photos, with a confidence interval.

The score is the area under the ROC curve, with its interval (`vlm_detect.stats.areas`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from vlm_detect.stats.areas import Folds
from vlm_detect.stats.metrics import Array

_TREES = 24
_FEW = 64  # features; with more, a linear model beats trees that each use a few


def cross_validate(values: Sequence[Any], y: Array, folds: Folds) -> Array:
    """(n,) each image's out-of-fold score: its rank within its fold, in (0, 1).

    `values` are features by name, or texts. Ranks, because the scores of different classifiers are not comparable.
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
        if len(set(y[train].tolist())) < 2:  # with few groups of unequal size, a fold may have a single class
            continue
        try:
            model.fit(_at(matrix, train), y[train])
        except ValueError:  # no word occurs twice: the captions are uninformative
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
