"""From answered prompts to the metrics of `summary.json`.

    summary = summarise(results, baselines=text_baselines(items))

An item is decided by all of its prompts together: a verdict by the probability averaged over both polarities, a
multiple choice by the option with the highest probability averaged over the rotations. So a model's bias towards "Yes."
or a letter cancels out; it is reported separately (`yes_rate`, `letter_rates`, the consistencies; `prompt_accuracy` is
the accuracy of single prompts). Tied options share the point. Verdict metrics (AUROC and so on) are computed on the
yes/no and real/fake items, or on the options' verdicts in a benchmark without such items.

Questions about local edits are summarized separately (`edits`, and rows in `by_kind`), open questions in
`explanations`: the top-level metrics include neither, unless there is nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from vlm_detect.benchmark.score import softmax
from vlm_detect.questions.ask import LETTERS
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.intervals import RESAMPLES, bootstrap
from vlm_detect.stats.metrics import Array, biased_points, figure_names, figures, logit, weighted_figures

UNSURE_BAND = (0.4, 0.6)


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
    topic: str = "generation"

    @property
    def row(self) -> str:
        """Its key in `by_kind`."""
        return f"edit_{self.kind}" if self.topic == "edit" else self.kind


def summarise(
    results: Sequence[Result],
    *,
    baselines: Mapping[str, float] | None = None,
    slices: Mapping[str, Mapping[str, str]] | None = None,
    unsure_band: tuple[float, float] = UNSURE_BAND,
    calibration: Calibration | None = None,
    weights: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The content of `summary.json` about the answers; `slices` maps a column to {item id: value}.

    With a `calibration` that was fitted, `calibrated` holds the verdicts' figures by it, next to those at a raw 0.5.
    Of a run with several witnesses, `witnesses` holds the figures of each by itself, with its weight in `weights`.
    """
    scored = item_scores(results, "logprob")
    generated = item_scores(results, "generate")
    every = scored or generated
    headline = headline_scores(every)
    summary = every_figure(every, unsure_band, resamples)
    if scored:
        summary |= _biases(headline)
    if calibration and calibration.n:
        summary["calibrated"] = calibrated_figures(scored, calibration, resamples)
    if alone := witness_figures(scored, resamples):
        summary["witnesses"] = {name: {"weight": (weights or {}).get(name), **found} for name, found in alone.items()}
    columns = {"object_class": {score.id: score.object_class for score in headline}, **(slices or {})}
    for column, values in columns.items():
        summary[f"by_{column}"] = _by(headline, lambda score, v=values: v.get(score.id) or "", resamples)  # type: ignore[misc]
    summary["floors"] = dict(baselines or {})
    closed = [score for score in generated if not KINDS[score.kind].is_open]
    if closed or (generated and all(KINDS[score.kind].is_open for score in scored)):
        headline = headline_scores(generated)
        summary["generate"] = figures_of(headline, unsure_band, resamples) | generation_figures(headline)
    return rounded(summary)


def every_figure(
    scores: Sequence[ItemScore], band: tuple[float, float] = UNSURE_BAND, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The top-level metrics, those of each kind of item (`by_kind`), and those of all questions about `edits`."""
    rows: dict[str, list[ItemScore]] = defaultdict(list)
    for score in scores:
        rows[score.row].append(score)
    found = figures_of(headline_scores(scores), band, resamples)
    found["by_kind"] = {row: figures_of(rows[row], band, resamples) for row in sorted(rows)}
    if edits := edit_scores(scores):
        found["edits"] = figures_of(edits, band, resamples)
    return found


def headline_scores(scores: Sequence[ItemScore]) -> list[ItemScore]:
    """The items of the top-level metrics: closed questions about generation, if there are any."""
    closed = [score for score in scores if not KINDS[score.kind].is_open] or list(scores)
    return [score for score in closed if score.topic == "generation"] or closed


def edit_scores(scores: Sequence[ItemScore]) -> list[ItemScore]:
    """The closed questions about edits."""
    return [score for score in scores if score.topic == "edit" and not KINDS[score.kind].is_open]


def item_scores(results: Iterable[Result], scoring: str) -> list[ItemScore]:
    """One row an item that the model reads, decided from all of its prompts under `scoring`."""
    by_id: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.scoring == scoring and not result.refused:
            by_id[result.id].append(result)
    decide = _by_probability if scoring == "logprob" else _by_answer
    return [decide(tuple(rows)) for rows in by_id.values()]


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


def rounded(value: Any) -> Any:
    """Plain JSON: six decimals, NaN as null."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


def _by_probability(rows: tuple[Result, ...]) -> ItemScore:
    first = rows[0]
    p_yes = [p for row in rows if (p := _p_positive(row)) is not None]
    p_fake = float(np.mean(p_yes)) if p_yes else None
    if (fused := _fused_odds(rows)) is not None:
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
        p_right = float(np.mean([_p_right(row) for row in rows]))
        correct = 0.5 if p_right == 0.5 else float(p_right > 0.5)
    return _score(rows, p_fake=p_fake, said_fake=said, correct=correct, parsed=True)


def _fused_odds(rows: Sequence[Result]) -> float | None:
    """Log-odds of all witnesses, the language model's averaged over the prompts; None where it stands alone."""
    fused = [row.fused_odds for row in rows if row.fused_odds is not None]
    return float(np.mean(fused)) if fused and len(fused) == len(rows) else None


def item_odds(score: ItemScore) -> float:
    """What the verdict on an item rests on, in nats; NaN where it has no probability."""
    fused = _fused_odds(score.results)
    own = [logit(row.p_fake) for row in score.results if row.p_fake is not None]
    if fused is not None:
        return fused
    return float(np.mean(own)) if own else float("nan")


def witness_figures(scores: Sequence[ItemScore], resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """Of each witness by itself, on the verdicts in which all speak: {n, accuracy, balanced_accuracy, auroc, ci95}."""
    spoken = [score for score in headline_scores(scores) if _fused_odds(score.results) is not None]
    if not spoken:
        return {}
    names = ["language_model", *(spoken[0].results[0].witness_odds or {})]
    found = {}
    for name in names:
        every = figures_of([_alone(score, name) for score in spoken], resamples=resamples)
        found[name] = {key: every[key] for key in ("n", "accuracy", "balanced_accuracy", "auroc")}
        found[name]["ci95"] = {key: every["ci95"].get(key) for key in ("accuracy", "balanced_accuracy", "auroc")}
    return found


def _alone(score: ItemScore, name: str) -> ItemScore:
    """An item as one witness decides it."""
    if name == "language_model":
        p_fake = float(np.mean([p for row in score.results if (p := _p_positive(row)) is not None]))
    else:
        p_fake = float(expit((score.results[0].witness_odds or {})[name]))
    said = p_fake >= 0.5
    return replace(score, p_fake=p_fake, said_fake=said, correct=float(said == score.is_fake))


def _by_answer(rows: tuple[Result, ...]) -> ItemScore:
    row = rows[0]
    said = says_fake(row, row.parsed)
    return _score(rows, p_fake=None, said_fake=said, correct=float(row.correct), parsed=row.parsed is not None)


def _score(rows: tuple[Result, ...], **decision: Any) -> ItemScore:
    first = rows[0]
    facts = (first.id, first.kind, first.group, first.generator, first.object_class, truth_of(first))
    return ItemScore(*facts, results=rows, topic=first.topic, **decision)


def truth_of(row: Result) -> bool | None:
    """Whether the image is generated or, for edits, altered; None where the question is about neither."""
    if row.topic == "generation":
        return row.is_fake
    # Only a yes/no question has a polarity; its first answer affirms.
    return (row.ground_truth == row.options[0]) == (row.polarity == "fake") if row.polarity else None


def _p_positive(row: Result) -> float | None:
    """Probability of "generated" or, for edits, of "altered"."""
    if row.topic == "generation" or not row.polarity:
        return row.p_fake
    assert row.logprobs is not None
    p_first = float(softmax(row.logprobs)[0])
    return p_first if row.polarity == "fake" else 1 - p_first


def _p_right(row: Result) -> float:
    assert row.logprobs is not None
    if row.ground_truth not in row.options:  # an open item whose image has no label
        return 0.0
    return float(softmax(row.logprobs)[row.options.index(row.ground_truth)])


def figures_of(
    scores: Sequence[ItemScore], band: tuple[float, float] = UNSURE_BAND, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Accuracy of all items, the metrics of those with a verdict, their intervals, and accuracy by generator."""
    right = np.array([score.correct for score in scores], float)
    found: dict[str, Any] = {
        "n": len(scores),
        "groups": len({score.group for score in scores}),
        "accuracy": float(right.mean()) if len(right) else None,
    }
    ci95: dict[str, Any] = bootstrap([s.group for s in scores], _mean(right, "accuracy"), resamples=resamples)
    y, p, groups, ranked = verdicts(scores)
    found["n_verdicts"] = len(y)
    names = figure_names(scores=ranked)
    found |= dict.fromkeys(figure_names())
    if len(y):
        points = figures(y, p)
        found |= {name: points[name] for name in names}
        intervals = bootstrap(
            groups, lambda w: weighted_figures(y, p, w), biased=biased_points(points), resamples=resamples
        )
        ci95 |= {name: intervals[name] for name in names}
    if ranked:
        unsure = (p > band[0]) & (p < band[1])
        outside = ((p >= 0.5) == (y > 0))[~unsure]
        found["unsure"] = {
            "band": list(band),
            "share": float(unsure.mean()),
            "accuracy_outside": float(outside.mean()) if len(outside) else None,
        }
    choices = [s for s in scores if KINDS[s.kind].gives_reasons and s.is_fake is not None]
    if choices:
        verdict_right = [s.said_fake == s.is_fake for s in choices]
        found["choice_verdict_accuracy"] = float(np.mean(verdict_right))
        found["right_verdict_wrong_reason"] = float(
            np.mean([right * (1 - s.correct) for right, s in zip(verdict_right, choices, strict=True)])
        )
    found["ci95"] = ci95
    found["by_generator"] = _by(scores, lambda score: score.generator, resamples)
    if found["by_generator"]:
        worst = min(found["by_generator"], key=lambda name: found["by_generator"][name]["accuracy"])
        found["minimum_generator"] = {"name": worst, "accuracy": found["by_generator"][worst]["accuracy"]}
    return found


def calibrated_figures(
    scores: Sequence[ItemScore], calibration: Calibration, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """The metrics of yes/no and real/fake verdicts under a run's calibration; None without such verdicts.

    It was fitted on the log-odds averaged over both polarities, fused where there are several witnesses, and is applied
    to those.
    """
    asked = [score for score in headline_scores(scores) if KINDS[score.kind].is_verdict]
    known = [score for score in asked if score.is_fake is not None and score.p_fake is not None]
    if not known:
        return None
    odds = np.array([item_odds(score) for score in known])
    p, y = calibration.p_fake(odds), np.array([s.is_fake for s in known], float)
    right = ((p > calibration.threshold) == (y > 0)).astype(float)
    above = float(np.nextafter(calibration.threshold, 2))  # strictly above the threshold
    groups, points = [s.group for s in known], figures(y, p, threshold=above)

    def resampled(w: Array) -> dict[str, Array]:
        found = weighted_figures(y, p, w, threshold=above)
        return {**found, "accuracy": w @ right / w.sum(axis=1)}

    unsure = (p > calibration.unsure_low) & (p < calibration.unsure_high)
    return {
        "n": len(known),
        "fitted_on": calibration.n,
        "reliable": calibration.reliable,
        "doubt": calibration.doubt,
        "threshold": calibration.threshold,
        "accuracy": float(right.mean()),
        **points,
        "ci95": bootstrap(groups, resampled, biased=biased_points(points), resamples=resamples),
        "unsure": {
            "band": [calibration.unsure_low, calibration.unsure_high],
            "share": float(unsure.mean()),
            "accuracy_outside": float(right[~unsure].mean()) if not unsure.all() else None,
        },
    }


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


def _biases(scores: Sequence[ItemScore]) -> dict[str, Any]:
    """Metrics of single prompts: accuracy, consistency, and the bias towards an answer."""
    rows = [row for score in scores for row in score.results]
    found: dict[str, Any] = {
        "prompts": len(rows),
        "prompt_accuracy": _share([row.correct for row in rows]),
        "accuracy_length_normalised": _share([_normalised_right(score) for score in scores]),
    }
    both = [score for score in scores if len({row.polarity for row in score.results}) == 2]
    found["polarity_consistency"] = _share([len({row.correct for row in s.results}) == 1 for s in both])
    turned = [score for score in scores if len({row.rotation for row in score.results}) > 1]
    found["rotation_consistency"] = _share([len({_option(row) for row in s.results}) == 1 for s in turned])
    affirming = [
        row for row in rows if KINDS[row.kind].is_verdict and row.options[0].strip(".").lower() in ("yes", "true")
    ]
    found["yes_rate"] = _share([row.answer == row.options[0] for row in affirming])
    found["p_yes"] = _share([float(softmax(row.logprobs or [0.0])[0]) for row in affirming])
    chosen = Counter(row.answer for row in rows if not KINDS[row.kind].is_verdict and row.answer in LETTERS)
    found["letter_rates"] = {letter: n / sum(chosen.values()) for letter, n in sorted(chosen.items())}
    return found


def _option(row: Result) -> int:
    return (LETTERS.index(row.answer) + row.rotation) % len(row.options)


def _normalised_right(score: ItemScore) -> float:
    """Decide as usual, with log-probabilities divided by the answers' lengths in tokens."""
    turned = []
    for row in score.results:
        assert row.logprobs is not None
        assert row.n_tokens is not None
        lengths = np.maximum(row.n_tokens, 1)
        turned.append(replace(row, logprobs=list(np.asarray(row.logprobs) / lengths), p_fake=None))
    if KINDS[score.kind].chooses:
        return _by_probability(tuple(turned)).correct
    return float(np.mean([_p_right(row) for row in turned])) > 0.5


def generation_figures(scores: Sequence[ItemScore]) -> dict[str, Any]:
    """Metrics of free answers only: the number unparsed, and the published scripts' exact match."""
    rows = [score.results[0] for score in scores]
    unparsed = sum(not score.parsed for score in scores)
    # As in the published TeoScardov scripts: verdicts exactly, option letters in either case.
    exact = [row.ground_truth in (row.answer.strip(), row.answer.strip().upper()) for row in rows]
    return {
        "unparsed": unparsed,
        "unparsed_rate": unparsed / len(scores) if scores else None,
        "exact_match": _share(exact),
        "answers": dict(
            Counter(row.parsed if row.parsed is not None else "(unparsed)" for row in rows).most_common(12)
        ),
    }


def _by(scores: Sequence[ItemScore], key: Callable[[ItemScore], str], resamples: int) -> dict[str, Any]:
    """{value: {n, accuracy, ci95}} of every value that occurs; () for a missing value."""
    slices: dict[str, list[ItemScore]] = defaultdict(list)
    for score in scores:
        if value := key(score):
            slices[value].append(score)
    found = {}
    for name, rows in sorted(slices.items()):
        right = np.array([row.correct for row in rows], float)
        interval = bootstrap([row.group for row in rows], _mean(right, "accuracy"), resamples=resamples)["accuracy"]
        found[name] = {"n": len(rows), "accuracy": float(right.mean()), "ci95": interval}
    return found


def _mean(values: Array, name: str) -> Callable[[Array], dict[str, Array]]:
    return lambda weights: {name: weights @ values / weights.sum(axis=1)}


def _share(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
