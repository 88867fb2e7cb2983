"""Shared by the pages on one run and on several: rows, charts, and cards of single items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.item_scores import ItemScore, option_probabilities, says_fake, verdicts
from vlm_detect.pages.page import (
    Picture,
    bars_figure,
    confusion_figure,
    photo,
    reliability_figure,
    roc_figure,
)
from vlm_detect.questions.kind import KINDS
from vlm_detect.stats.metrics import Array

CARDS = 12


def kind_rows(summaries: Sequence[dict[str, Any]], *, auroc: bool = True) -> list[dict[str, Any]]:
    """A row for each kind of question, edits separately: n, its highest blind baseline, and each summary's metrics."""
    kinds = sorted({kind for summary in summaries for kind in summary["by_kind"]})
    rows = []
    for kind in kinds:
        figures = [summary["by_kind"].get(kind) or {} for summary in summaries]
        baselines = [
            value for figure in figures for value in (figure.get("floors") or {}).values() if value is not None
        ]
        names = ("accuracy", "auroc") if auroc else ("accuracy",)
        cells = [(figure.get(name), (figure.get("ci95") or {}).get(name)) for figure in figures for name in names]
        n = max(figure.get("n", 0) for figure in figures)
        rows.append({"name": kind.replace("_", " "), "n": n, "baseline": max(baselines, default=None), "cells": cells})
    return rows


def charts_of(scores: Sequence[ItemScore], summary: dict[str, Any]) -> list[Picture]:
    """ROC, reliability, confusion and accuracy by generator, as far as the answers allow."""
    charts = []
    y, p, _, ranked = verdicts(scores)
    if ranked and 0 < y.sum() < len(y):
        charts += [roc_figure({"this run": (y, p)}), reliability_figure({"this run": (y, p)})]
    if len(y):
        charts.append(confusion_figure(confusion_counts(y, p), ["real", "generated"]))
    if summary["by_generator"]:
        charts.append(bars_figure(summary["by_generator"], "Accuracy by generator"))
    return charts


def confusion_counts(y: Array, p: Array) -> Array:
    """(2, 2): true class by predicted class."""
    said = p >= 0.5
    return np.array([[((y == truth) & (said == answer)).sum() for answer in (0, 1)] for truth in (0, 1)], float)


def most_confident_errors(scores: Sequence[ItemScore], n: int = CARDS) -> list[ItemScore]:
    return sorted((score for score in scores if score.correct < 0.5), key=confidence, reverse=True)[:n]


def most_unsure(scores: Sequence[ItemScore], n: int = CARDS, band: float = 0.1) -> list[ItemScore]:
    near = [score for score in scores if score.p_fake is not None and abs(score.p_fake - 0.5) < band]
    return sorted(near, key=lambda score: abs((score.p_fake or 0.5) - 0.5))[:n]


def confidence(score: ItemScore) -> float:
    """The probability of the given answer: of the verdict, or of the chosen option."""
    if score.results[0].logprobs is None:
        return 0.0
    kind = KINDS[score.kind]
    if score.p_fake is not None and kind.is_verdict:
        return max(score.p_fake, 1 - score.p_fake)
    return float(option_probabilities(score.results).max()) if kind.chooses else 0.5


def card_maker(benchmark: Benchmark) -> Callable[[ItemScore], dict[str, Any]]:
    items = {item.id: item for item in benchmark.items}

    def card(score: ItemScore) -> dict[str, Any]:
        pictures = []
        for ref in items[score.id].images if score.id in items else ():
            image = _try_open(benchmark, ref)
            if image is not None:
                pictures.append(photo(image, f"Image of item {score.id}", max_side=224))
        first = score.results[0]
        return {
            "pictures": pictures,
            "question": first.question,
            "answer": first.answer if first.answer.strip() else "(nothing)",
            "truth": first.ground_truth,
            "p_fake": score.p_fake,
            "p_name": "P(altered)" if score.topic == "edit" else "P(generated)",
            "correct": score.correct > 0.5,
            "why": disagreement(score),
        }

    return card


def disagreement(score: ItemScore) -> str:
    """Why the answer on a card is not what the item counts as; empty where it is.

    The answer shown is that to the question as it stands; an item is decided by the mean over all its prompts.
    """
    first, n = score.results[0], len(score.results)
    said = says_fake(first, first.parsed)
    other_verdict = score.said_fake is not None and said is not None and said != score.said_fake
    if n < 2 or not (other_verdict or first.correct != (score.correct > 0.5)):
        return ""
    forms = "orders of its options" if KINDS[score.kind].chooses else "wordings, which are each other's opposite"
    return f"This answer is to one form of the question. The item is decided by the mean over {n} {forms}."


def _try_open(benchmark: Benchmark, ref: str) -> Image.Image | None:
    from vlm_detect.images.decode import ImageRejected

    try:
        return benchmark.image(ref)
    except (OSError, ImageRejected):
        return None
