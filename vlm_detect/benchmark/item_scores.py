"""Items, decided: one score of an item from all of its answered prompts.

    scores = item_scores(results, "logprob")
    y, p, groups, ranks = verdicts(scores)

A verdict is decided by the probability averaged over both polarities of its question, a multiple choice by the option
with the highest probability averaged over the rotations. Tied options share the point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from vlm_detect.benchmark.score import softmax
from vlm_detect.questions.ask import LETTERS
from vlm_detect.questions.kind import KINDS
from vlm_detect.questions.prompts import row_of
from vlm_detect.records import Result, Topic
from vlm_detect.stats.metrics import Array, logit


@dataclass(frozen=True)
class ItemScore:
    """One item, decided. `said_fake` is its verdict; `p_fake` is None by generation and for items without a verdict.

    For items about edits all three mean altered instead of generated. `correct` is 1, 0, or a share of a tie.
    """

    id: str
    kind: str
    group: str
    generator: str
    object_class: str
    is_fake: bool | None
    p_fake: float | None
    said_fake: bool | None
    correct: float
    parsed: bool
    results: tuple[Result, ...]
    topic: Topic = "generation"

    @property
    def row(self) -> str:
        """Its key in `by_kind`."""
        return row_of(self.kind, self.topic, instructed=any(result.instructed for result in self.results))


def item_scores(results: Iterable[Result], scoring: str) -> list[ItemScore]:
    """One row an item that the model reads, decided from all of its prompts under `scoring`."""
    by_id: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.scoring == scoring and not result.refused:
            by_id[result.id].append(result)
    decide = by_probability if scoring == "logprob" else _by_answer
    return [decide(tuple(rows)) for rows in by_id.values()]


def headline_scores(scores: Sequence[ItemScore]) -> list[ItemScore]:
    """The items of the top-level metrics: closed questions about generation, if there are any."""
    closed = [score for score in scores if not KINDS[score.kind].is_open] or list(scores)
    return [score for score in closed if score.topic == "generation"] or closed


def edit_scores(scores: Sequence[ItemScore]) -> list[ItemScore]:
    """The closed questions about edits."""
    return [score for score in scores if score.topic == "edit" and not KINDS[score.kind].is_open]


def verdicts(scores: Sequence[ItemScore]) -> tuple[Array, Array, list[str], bool]:
    """(y, p, groups, whether p ranks) of the items with a verdict; by generation p is the decision itself.

    An unparsed answer counts as the wrong verdict.
    """
    known = [s for s in headline_scores(scores) if s.is_fake is not None]
    known = [s for s in known if KINDS[s.kind].is_verdict] or known
    ranked = [s for s in known if s.p_fake is not None]
    if ranked:
        y = np.array([s.is_fake for s in ranked], float)
        return y, np.array([s.p_fake for s in ranked], float), [s.group for s in ranked], True
    y = np.array([s.is_fake for s in known], float)
    said = [not s.is_fake if s.said_fake is None else s.said_fake for s in known]
    return y, np.array(said, float), [s.group for s in known], False


def item_odds(score: ItemScore) -> float:
    """What the verdict on an item rests on, in nats; NaN where it has no probability."""
    fused = fused_odds(score.results)
    own = [logit(row.p_fake) for row in score.results if row.p_fake is not None]
    if fused is not None:
        return fused
    return float(np.mean(own)) if own else float("nan")


def option_probabilities(results: Sequence[Result]) -> Array:
    """Mean probability of each option over the rotations, in the order of rotation 0."""
    turned = []
    for result in results:
        assert result.logprobs is not None
        # Option i of rotation 0 is at position i - rotation.
        turned.append(np.roll(softmax(result.logprobs), result.rotation))
    return np.mean(turned, axis=0)


def says_fake(result: Result, answer: str | None) -> bool | None:
    """The verdict of `answer` (a letter, or a candidate); None where it states none."""
    if answer is None:
        return None
    truth, kind = truth_of(result), KINDS[result.kind]
    if kind.is_verdict or not kind.states_verdicts:  # a right answer states the true verdict, a wrong one the other
        return None if truth is None else truth == (answer == result.ground_truth)
    lettered = kind.chooses and answer in LETTERS[: len(result.options)]
    return kind.says_fake(result.options[LETTERS.index(answer)] if lettered else answer)


def truth_of(row: Result) -> bool | None:
    """Whether the image is generated or, for edits, altered; None where the question is about neither."""
    if row.topic == "generation":
        return row.is_fake
    # Only a yes/no question has a polarity; its first answer affirms.
    return (row.ground_truth == row.options[0]) == (row.polarity == "fake") if row.polarity else None


def by_witness(score: ItemScore, name: str) -> ItemScore:
    """An item as one witness decides it."""
    if name == "language_model":
        p_fake = float(np.mean([p for row in score.results if (p := _p_positive(row)) is not None]))
    else:
        p_fake = float(expit((score.results[0].witness_odds or {})[name]))
    said = p_fake >= 0.5
    return replace(score, p_fake=p_fake, said_fake=said, correct=float(said == score.is_fake))


def by_probability(rows: tuple[Result, ...]) -> ItemScore:
    """One item, decided from its prompts that were scored by log-probabilities."""
    first = rows[0]
    p_yes = [p for row in rows if (p := _p_positive(row)) is not None]
    p_fake = float(np.mean(p_yes)) if p_yes else None
    if (fused := fused_odds(rows)) is not None:
        p_fake = float(expit(fused))
    truth = truth_of(first)
    kind = KINDS[first.kind]
    if kind.chooses:
        reference = next((row for row in rows if row.rotation == 0), first)
        probabilities = np.roll(option_probabilities(rows), -reference.rotation)  # in the reference's order
        best = [reference.options[i] for i in np.flatnonzero(probabilities >= probabilities.max() - 1e-12)]
        in_letters = reference.ground_truth in LETTERS
        right = reference.options[LETTERS.index(reference.ground_truth)] if in_letters else reference.ground_truth
        correct = (right in best) / len(best)
        said_all = {says_fake(reference, option) for option in best}
        said = said_all.pop() if len(said_all) == 1 else None
    elif p_fake is not None and (truth is not None or kind.is_open):
        said = p_fake >= 0.5
        correct = float(said == truth)
    else:
        said = None
        probability = float(np.mean([p_right(row) for row in rows]))
        correct = 0.5 if probability == 0.5 else float(probability > 0.5)
    return _score(rows, p_fake=p_fake, said_fake=said, correct=correct, parsed=True)


def _by_answer(rows: tuple[Result, ...]) -> ItemScore:
    row = rows[0]
    said = says_fake(row, row.parsed)
    return _score(rows, p_fake=None, said_fake=said, correct=float(row.correct), parsed=row.parsed is not None)


def _score(rows: tuple[Result, ...], **decision: Any) -> ItemScore:
    first = rows[0]
    facts = (first.id, first.kind, first.group, first.generator, first.object_class, truth_of(first))
    return ItemScore(*facts, results=rows, topic=first.topic, **decision)


def fused_odds(rows: Sequence[Result]) -> float | None:
    """Log-odds of all witnesses, the language model's averaged over the prompts; None where it stands alone."""
    fused = [row.fused_odds for row in rows if row.fused_odds is not None]
    return float(np.mean(fused)) if fused and len(fused) == len(rows) else None


def _p_positive(row: Result) -> float | None:
    """Probability of "generated" or, for edits, of "altered"."""
    if row.topic == "generation" or not row.polarity:
        return row.p_fake
    assert row.logprobs is not None
    p_first = float(softmax(row.logprobs)[0])
    return p_first if row.polarity == "fake" else 1 - p_first


def p_right(row: Result) -> float:
    """Probability of the right answer among the options of one prompt."""
    assert row.logprobs is not None
    if row.ground_truth not in row.options:  # an open item whose image has no label
        return 0.0
    return float(softmax(row.logprobs)[row.options.index(row.ground_truth)])
