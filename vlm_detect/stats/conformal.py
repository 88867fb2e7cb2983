"""Conformal p-values: how unusual a score is among ordinary ones, for any distribution.

    p_values(scores, ordinary)      # small: hardly any ordinary score is as high

For a new image from the source of the ordinary ones, P(p <= level) <= level for every level (Vovk, Gammerman and
Shafer, "Algorithmic Learning in a Random World", 2005; exchangeability is the only condition). The smallest p-value is
1 / (n + 1), so a level needs at least 1 / level - 1 ordinary scores.
"""

from __future__ import annotations

import math

import numpy as np


def p_values(scores: np.ndarray, ordinary: np.ndarray) -> np.ndarray:
    """(1 + the number of `ordinary` scores (n,) that reach each of `scores` (N,)) / (n + 1); (N,) in (0, 1]."""
    ordered = np.sort(np.asarray(ordinary, dtype=np.float64))
    reached = len(ordered) - np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="left")
    return (1 + reached) / (len(ordered) + 1)


def least_n(level: float) -> int:
    """The minimum number of ordinary scores for a p-value of `level` in (0, 1); 99 for 0.01."""
    return math.ceil(1 / level - 1e-9) - 1
