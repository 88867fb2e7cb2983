"""From answered prompts to the metrics of `summary.json`.

    summary = summarise(results, baselines=text_baselines(items))

Items are decided by all of their prompts together (`item_scores`), so that a model's bias towards "Yes." or a letter
cancels out; it is reported separately (`yes_rate`, `letter_rates`, the consistencies; `prompt_accuracy` is the accuracy
of single prompts). Verdict metrics (AUROC and so on) are computed on the
yes/no and real/fake items, or on the options' verdicts in a benchmark without such items.

Questions about local edits are summarized separately (`edits`, and rows in `by_kind`), open questions in
`explanations`: the top-level metrics include neither, unless there is nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlm_detect.benchmark.item_scores import (
    ItemScore,
    by_probability,
    by_witness,
    edit_scores,
    fused_odds,
    headline_scores,
    item_odds,
    item_scores,
    p_right,
    verdicts,
)
from vlm_detect.benchmark.score import softmax
from vlm_detect.questions.ask import LETTERS
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.intervals import RESAMPLES, bootstrap, paired_bootstrap
from vlm_detect.stats.metrics import Array, biased_points, figure_names, figures, weighted_figures

UNSURE_BAND = (0.4, 0.6)


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


def rounded(value: Any) -> Any:
    """Plain JSON: six decimals, NaN as null."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


def witness_figures(scores: Sequence[ItemScore], resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """Of each witness by itself, on the verdicts in which all speak: {n, accuracy, balanced_accuracy, auroc, ci95}.

    `fused_above` is how much more accurate their fusion is on the same images: {value, ci95, p}, paired.
    """
    spoken = [score for score in headline_scores(scores) if fused_odds(score.results) is not None]
    if not spoken:
        return {}
    names = ["language_model", *(spoken[0].results[0].witness_odds or {})]
    groups, fused = [score.group for score in spoken], np.array([score.correct for score in spoken], float)
    found = {}
    for name in names:
        alone = [by_witness(score, name) for score in spoken]
        right = np.array([score.correct for score in alone], float)
        every = figures_of(alone, resamples=resamples)
        interval, p = paired_bootstrap(groups, _mean(right, "accuracy"), _mean(fused, "accuracy"), resamples=resamples)[
            "accuracy"
        ]
        found[name] = {key: every[key] for key in ("n", "accuracy", "balanced_accuracy", "auroc")}
        found[name]["ci95"] = {key: every["ci95"].get(key) for key in ("accuracy", "balanced_accuracy", "auroc")}
        found[name]["fused_above"] = {"value": float((fused - right).mean()), "ci95": interval, "p": p}
    return found


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
        return by_probability(tuple(turned)).correct
    return float(np.mean([p_right(row) for row in turned])) > 0.5


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
