"""A false-alarm rate that is guaranteed: cuts between the scores of photos, each with an exact binomial bound.

    scores = PhotoScores.from_odds(odds_real)     # log-odds of n photos, in nats
    cut = scores.cut(0.01)                        # UserError where n photos cannot guarantee it
    cut.log_odds, cut.reached, cut.bound

Of n photos sampled independently from a source, let k score above the cut, which is the (k + 1)-th highest score. The
part of that source's photos that score above it is then Beta(k + 1, n - k), or less where scores tie, whatever their
distribution (David and Nagaraja, "Order Statistics", 2003, section 2.5). `bound` is the 95 % quantile of that law, and
equals the upper limit of Clopper and Pearson (1934) for k of n. The least rate that n photos guarantee is
1 - 0.05^(1/n): 1 % needs 299.

What it does not do: it says nothing about photos of another source, nor about the images that are found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from vlm_detect.errors import UserError

CONFIDENCE = 0.95  # of the calibrations, at most 5 % exceed the rate that they guarantee
_EVERY = 200  # the highest scores are stored one by one,
_STEP = 1.02  # and from there ranks that grow by this factor


@dataclass(frozen=True)
class Cut:
    """What exceeds `log_odds` is called generated: `above` of the photos did, and `bound` holds for new ones."""

    log_odds: float
    above: int
    n: int
    bound: float

    @property
    def reached(self) -> float:
        """The largest part of the given photos that may exceed it."""
        return self.above / self.n


@dataclass(frozen=True)
class PhotoScores:
    """Of `n` photos the scores of some ranks: `quantiles` are (how many photos rank above it, its log-odds in nats)."""

    n: int
    quantiles: tuple[tuple[int, float], ...]

    @classmethod
    def from_odds(cls, odds: np.ndarray) -> PhotoScores:
        """From the log-odds (N,) of photos; all of a few hundred are kept, of more a few hundred ranks."""
        ordered = np.sort(np.asarray(odds, dtype=np.float64))[::-1]
        ranks, rank = [], 0
        while rank < len(ordered):
            ranks.append(rank)
            rank = rank + 1 if rank < _EVERY else math.ceil(rank * _STEP)
        return cls(len(ordered), tuple((rank, float(ordered[rank])) for rank in ranks))

    def cut(self, max_fpr: float, confidence: float = CONFIDENCE) -> Cut:
        """The lowest stored score whose bound is at most `max_fpr`; `UserError` where none is."""
        check_photos(self.n, max_fpr, confidence)
        ranks = np.array([rank for rank, _ in self.quantiles])
        bounds = bound(ranks, self.n, confidence)
        last = int(np.flatnonzero(bounds <= max_fpr)[-1])
        rank, log_odds = self.quantiles[last]
        return Cut(log_odds, rank, self.n, float(bounds[last]))


def check_photos(n: int, max_fpr: float, confidence: float = CONFIDENCE) -> None:
    """`UserError` where `n` photos cannot guarantee `max_fpr`."""
    if n >= (needed := least_photos(max_fpr, confidence)):
        return
    photos = f"these are {n}" if n else "there are none"
    remedy = f"; give more of them, or guarantee {percent(least_rate(n, confidence))}" if n else ""
    raise UserError(f"--max_fpr {max_fpr:g}: {percent(max_fpr)} needs at least {needed} photos, {photos}{remedy}")


def bound(above: np.ndarray | int, n: int, confidence: float = CONFIDENCE) -> np.ndarray:
    """The upper limit of a rate of which `above` of `n` were seen."""
    seen = np.asarray(above)
    return beta.ppf(confidence, seen + 1, n - seen)


def least_photos(max_fpr: float, confidence: float = CONFIDENCE) -> int:
    """How many photos it takes to guarantee `max_fpr` in (0, 1), none of them above the cut; 299 for 0.01."""
    n = math.ceil(math.log(1 - confidence) / math.log1p(-max_fpr) - 1e-9)
    return n if bound(0, n, confidence) <= max_fpr else n + 1  # rounded the other way


def least_rate(n: int, confidence: float = CONFIDENCE) -> float:
    """The least rate that `n` photos can guarantee, rounded up to four decimals."""
    return math.ceil(float(bound(0, n, confidence)) * 1e4) / 1e4


def percent(rate: float) -> str:
    """Such as "1 %" or "0.25 %"."""
    return f"{100 * rate:.4g} %"
