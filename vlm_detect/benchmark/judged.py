"""Sentences that no measurement checks, put to a judge: are they likelier of their own image than of another?

    wanted = judged_statements(rows, seed=0)
    records = kept.all(wanted, asker(judge, images), batch=16, about="...")
    judged_figures(wanted, records)         # {"specificity": {"n": 120, "share": 0.6, "ci95": [...]}}

The other image has the same label, so that a sentence that fits every fake comes to 0.5. The judge does not know which
image is which. One that gives no log-probabilities is asked for its answer; the same answer to both counts half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_detect.benchmark.checked import Checked, others_of
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.truth import ratio
from vlm_detect.generate.asked_models import Asked
from vlm_detect.generate.judge import Judgement, Statement, judge
from vlm_detect.places import place_of
from vlm_detect.records import Item
from vlm_detect.stats.intervals import RESAMPLES

_A_TEXT = 2  # sentences of one explanation that are judged, at most


@dataclass(frozen=True)
class Judged:
    """A sentence about one item's image, and the item whose image it is checked against."""

    item: Item
    other: Item
    text: str
    place: str | None

    @property
    def key(self) -> str:
        return f"{self.item.id} {self.other.id} {self.text}"


def judged_statements(rows: Sequence[Checked], *, seed: int = 0) -> list[Judged]:
    """The first unchecked sentences of each explanation, each with another image of the label."""
    found = []
    for row, others in zip(rows, others_of(rows, seed=seed, most=1), strict=True):
        for reason in row.unchecked[:_A_TEXT] if others else ():
            place = place_of(reason.box, row.measured.size) if reason.box else None
            found.append(Judged(row.item, others[0].item, reason.text, place))
    return found


def asker(asked: Asked, images: DatasetImages) -> Callable[[Sequence[Judged]], list[dict[str, Any]]]:
    """Puts each statement to the judge, of the one image and of the other."""

    def ask(some: Sequence[Judged]) -> list[dict[str, Any]]:
        opened = [[images.image(item.images[0]) for item in (one.item, one.other)] for one in some]
        pairs = zip(some, opened, strict=True)
        judgements = judge(asked, [Statement(one.text, own, other, one.place) for one, (own, other) in pairs])
        return [{"win": win(judgement)} for judgement in judgements]

    return ask


def win(judgement: Judgement) -> float:
    """1 where a statement is likelier of its own image, 0 of the other, 0.5 of neither."""
    if judgement.margin is not None:
        return 0.5 + 0.5 * float(np.sign(judgement.margin))
    if not judgement.is_complete:
        return 0.5
    return 0.5 + 0.5 * ((judgement.own is True) - (judgement.other is True))


def judged_figures(
    wanted: Sequence[Judged], records: Sequence[dict[str, Any]], *, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """{n, share, ci95} over sentences; None where there are none."""
    if not wanted:
        return None
    wins = np.array([[record["win"], 1.0] for record in records])
    return ratio([one.item.group for one in wanted], wins, resamples)
