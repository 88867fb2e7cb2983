"""Uncertainty: 95 % bootstrap intervals over source photos, and paired tests of two runs.

    bootstrap(groups, lambda w: weighted_figures(y, p, w))        # {"auroc": (low, high), ...}

Groups are resampled, never single images: a photo's twins, tiles and rotations are not independent evidence. Percentile
intervals, 1000 resamples; a resample in which a metric is undefined (no generated image sampled) is excluded from that
metric's interval, and a metric that is undefined in most resamples has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from vlm_detect.stats.metrics import Array

RESAMPLES = 1000
FEW = 20  # source photos: resamples of fewer are too alike, and their interval is too narrow to rely on
_CELLS = 4_000_000  # weights in memory: 32 MB, plus a few arrays of that size

Interval = tuple[float, float] | None


def bootstrap(
    groups: Sequence[str],
    figures: Callable[[Array], Mapping[str, Array]],
    *,
    biased: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The 95 % interval of every metric of `figures(weights)`; weights are (B, n), values (B,).

    None with a single group, or if the metric is defined in fewer than half of the resamples. `biased` has the point
    estimates of metrics that are biased upwards in resamples (such as the calibration error: a resample has fewer
    distinct images per bin); their resampled values are shifted by the mean difference, not below 0.
    """
    draws = {name: np.concatenate(values) for name, values in _draws(groups, figures, resamples, seed).items()}
    for name, point in (biased or {}).items():
        if np.isfinite(draws[name]).any() and np.isfinite(point):
            draws[name] = np.maximum(draws[name] - (np.nanmean(draws[name]) - point), 0.0)
    return {name: _percentiles(values) if len(set(groups)) > 1 else None for name, values in draws.items()}


def paired_bootstrap(
    groups: Sequence[str],
    first: Callable[[Array], Mapping[str, Array]],
    second: Callable[[Array], Mapping[str, Array]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[Interval, float]]:
    """(95 % interval of second - first, two-sided p) for every metric, both runs on the same resamples."""

    def difference(weights: Array) -> dict[str, Array]:
        a, b = first(weights), second(weights)
        return {name: b[name] - a[name] for name in a}

    found = {}
    for name, values in _draws(groups, difference, resamples, seed).items():
        sample = np.concatenate(values)
        sample = sample[np.isfinite(sample)]
        # Twice the smaller tail, ties counted in both; bounded below by the resolution of the resamples.
        tail = min((sample <= 0).mean(), (sample >= 0).mean()) if len(sample) else 1.0
        p = float(min(1.0, max(2 * tail, 1 / resamples)))
        found[name] = (_percentiles(np.concatenate(values)), p)
    return found


def mcnemar(first_right: Sequence[float], second_right: Sequence[float]) -> tuple[int, int, float]:
    """(only the first is right, only the second is right, exact two-sided p of an even split) on the same items.

    A shared point (two tied options: 0.5) counts as a fraction; the sums are rounded.
    """
    a, b = np.asarray(first_right, float), np.asarray(second_right, float)
    only_first, only_second = (round(float(np.maximum(part, 0).sum())) for part in (a - b, b - a))
    discordant = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def _draws(
    groups: Sequence[str], figures: Callable[[Array], Mapping[str, Array]], resamples: int, seed: int
) -> dict[str, list[Array]]:
    _, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)  # (n,)
    n_groups = int(group_of.max()) + 1 if len(group_of) else 0
    if not n_groups:
        return {}
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // len(group_of))
    draws: dict[str, list[Array]] = {}
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=size)  # (B, groups)
        for name, values in figures(counts[:, group_of].astype(float)).items():
            draws.setdefault(name, []).append(values)
    return draws


def _percentiles(values: Array) -> Interval:
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2 or not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
