"""Figures of explanations that measurements give, no model being asked again: truth, specificity, false faults.

    truth_figures(rows, seed=0)      # {"truth": {"n": 412, "share": 0.83, "ci95": [...]}, "specificity": {...}, ...}

Each has its blind baseline: the same explanation checked against other images of its label, and the constant that is
true most often. Intervals are by bootstrap over source photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_detect.benchmark.checked import Checked, others_of
from vlm_detect.measures.calibration import Direction
from vlm_detect.measures.claims import SLACK, Claim, check_claim
from vlm_detect.measures.registry import MEASURES
from vlm_detect.measures.wording import BOUNDS
from vlm_detect.records import Label
from vlm_detect.stats.intervals import RESAMPLES, bootstrap, paired_bootstrap
from vlm_detect.stats.metrics import Array

_CONSTANT_CLAIMS = 2  # as many as an explanation is asked for
_DIRECTIONS: tuple[Direction, Direction] = ("lower", "higher")


@dataclass(frozen=True, eq=False)
class _Counts:
    """What is counted of n explanations, each against its own image and against others of its label."""

    groups: Array  # (n,): names of source photos
    labels: Array  # (n,)
    own: Array  # (n, 2): claims that are true, and that could be checked against the image
    others: Array  # (n, 2): the mean of the same over the other images
    constant: Array  # (n, 2): the same of what a constant text claims
    recalled: Array  # (n, 2): reasons that are said, and that could be
    wins: Array  # (n,): how often it fits its own image better than another; NaN where there is no other
    unchecked: Array  # (n, 2): sentences that nothing checks, and all
    ordinary: Array  # (n,): whether it says that nothing stands out

    def some(self, rows: Array) -> _Counts:
        return _Counts(**{name: values[rows] for name, values in vars(self).items()})


def truth_figures(rows: Sequence[Checked], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """The figures of explanations of photos and generated images, together and by label; None where there are none."""
    rows = [row for row in rows if row.label != "edited"]
    if not rows:
        return None
    counts = _count(rows, seed)
    found = _figures(counts, resamples)
    labels = sorted(set(counts.labels.tolist()))
    if len(labels) > 1:
        found["by_label"] = {label: _figures(counts.some(counts.labels == label), resamples) for label in labels}
    return found


def _count(rows: Sequence[Checked], seed: int) -> _Counts:
    of_others = [
        [row.counts_against(other.measured) for other in some]
        for row, some in zip(rows, others_of(rows, seed=seed), strict=True)
    ]
    wins = [
        np.mean([_wins(row.own, one) for one in some]) if some else np.nan
        for row, some in zip(rows, of_others, strict=True)
    ]
    return _Counts(
        groups=np.array([row.item.group for row in rows]),
        labels=np.array([row.label for row in rows]),
        own=np.array([row.own for row in rows], float),
        # Each row weighs as much as against its own image, however many others there are.
        others=np.array([np.mean(some, axis=0) if some else (0.0, 0.0) for some in of_others]),
        constant=np.array(_constant_counts(rows), float),
        recalled=np.array([(row.recalled, len(row.could_say)) for row in rows], float),
        wins=np.array(wins, float),
        unchecked=np.array([(len(row.unchecked), len(row.stated)) for row in rows], float),
        ordinary=np.array([row.says_ordinary for row in rows], float),
    )


def _figures(counts: _Counts, resamples: int) -> dict[str, Any]:
    def share(values: Array) -> dict[str, Any] | None:
        """Of (n, 2) the ratio of the sums, of (n,) the mean of what is defined."""
        defined = np.isfinite(values.sum(axis=-1) if values.ndim == 2 else values)
        some = values[defined]
        sums = some if values.ndim == 2 else np.stack([some, np.ones(len(some))], axis=1)
        return ratio(counts.groups[defined], sums, resamples)

    return {
        "n": len(counts.labels),
        "claims_an_image": share(counts.own[:, 1]),
        "truth": share(counts.own),
        "truth_of_another_image": share(counts.others),
        "truth_above_another_image": difference(counts.groups, counts.others, counts.own, resamples),
        "truth_of_constant": share(counts.constant),
        "recall": share(counts.recalled),
        "specificity": share(counts.wins),
        "unchecked_sentences": share(counts.unchecked),
        "says_ordinary": share(counts.ordinary),
    }


def ratio(groups: Sequence[str] | Array, sums: Array, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """{n, groups, share, ci95} of the sum of (n, 2)'s first column over that of the second, which is `n`.

    `groups` are the source photos that count in it. None of nothing.
    """
    if not sums[:, 1].sum():
        return None
    intervals = bootstrap(groups, lambda w: {"share": _over(w @ sums[:, 0], w @ sums[:, 1])}, resamples=resamples)  # type: ignore[arg-type]
    total = sums.sum(axis=0)
    share = float(total[0] / total[1])
    return {"n": round(float(total[1])), "groups": _distinct(groups, sums), "share": share, "ci95": intervals["share"]}


def difference(
    groups: Sequence[str] | Array, first: Array, second: Array, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """As `ratio`, of second - first, ratios of the sums of (n, 2); None where one of them is of nothing."""
    if not (first[:, 1].sum() and second[:, 1].sum()):
        return None
    intervals = paired_bootstrap(
        groups,  # type: ignore[arg-type]
        lambda w: {"share": _over(w @ first[:, 0], w @ first[:, 1])},
        lambda w: {"share": _over(w @ second[:, 0], w @ second[:, 1])},
        resamples=resamples,
    )
    point = second[:, 0].sum() / second[:, 1].sum() - first[:, 0].sum() / first[:, 1].sum()
    n = round(float(second[:, 1].sum()))
    return {"n": n, "groups": _distinct(groups, second), "share": float(point), "ci95": intervals["share"][0]}


def _distinct(groups: Sequence[str] | Array, sums: Array) -> int:
    return len({group for group, of in zip(groups, sums[:, 1], strict=True) if of})


def _over(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _wins(own: tuple[int, int], other: tuple[int, int]) -> float:
    """By the shares of claims that are true; where one of the images has no such numbers neither fits better."""
    if not (own[1] and other[1]):
        return 0.5
    return 0.5 + 0.5 * float(np.sign(own[0] * other[1] - other[0] * own[1]))


def _constant_counts(rows: Sequence[Checked]) -> list[tuple[int, int]]:
    """(true, held) claims of a text that says the same of every image of a label.

    It makes the two claims, of different kinds and of the least share that reasons state, that are true most often of
    these very images: no text that looks at no image does better with such claims.
    """
    by_label = {label: _constant_claims(rows, label) for label in {row.label for row in rows}}
    found = []
    for row in rows:
        statuses = [check_claim(claim, row.measured, row.calibration).status for claim in by_label[row.label]]
        found.append((statuses.count("confirmed"), len(statuses) - statuses.count("unchecked")))
    return found


def _constant_claims(rows: Sequence[Checked], label: Label) -> list[Claim]:
    some = [row for row in rows if row.label == label]
    calibration = some[0].calibration
    shares = []
    for name in calibration.informative:
        standings = [calibration.standing(row.measured, name) for row in some]
        for direction in _DIRECTIONS:
            claim = Claim(name, MEASURES[name].kind, direction, min(BOUNDS))
            held = [standing.beyond(direction) >= claim.bound - SLACK for standing in standings if standing]
            if held:
                shares.append((float(np.mean(held)), claim))
    best: dict[str, Claim] = {}
    for _, claim in sorted(shares, key=lambda one: -one[0]):
        best.setdefault(claim.kind, claim)
    return list(best.values())[:_CONSTANT_CLAIMS]
