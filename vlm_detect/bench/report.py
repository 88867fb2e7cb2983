"""`report.html`: one self-contained page on one run, from its summary and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.bench.items import Benchmark
from vlm_detect.bench.page import (
    Picture,
    bars_figure,
    confusion_figure,
    photo,
    reliability_figure,
    render,
    roc_figure,
    write_page,
)
from vlm_detect.bench.summary import ItemScore, item_scores, option_probabilities, verdicts
from vlm_detect.records import Result

CARDS = 12
FIGURE_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "tpr": "Generated images found (TPR)",
    "tnr": "Photos left alone (TNR)",
    "f1": "F1",
    "auroc": "AUROC",
    "ap": "Average precision",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "tpr_at_01_fpr": "TPR at 0.1 % FPR",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}
_FEW_GROUPS = 30


def write_report(path: str | Path, summary: dict[str, Any], results: Sequence[Result], benchmark: Benchmark) -> None:
    """Write the page; images that cannot be opened any more (recorded answers) are left out of the cards."""
    scored = item_scores(results, "logprob")
    generated = item_scores(results, "generate")
    generate = summary.get("generate") or {}
    card = _card_maker(benchmark)
    html = render(
        "report.html.j2",
        title=f"{benchmark.name}: benchmark report",
        summary=summary,
        notes=notes_of(summary),
        first_column="By log-probability" if scored else "Recorded answers",
        second=bool(scored and generated),
        rows=[
            {
                "name": label,
                "value": summary.get(name),
                "ci95": (summary["ci95"] or {}).get(name),
                "second": generate.get(name),
                "second_ci95": (generate.get("ci95") or {}).get(name),
            }
            for name, label in FIGURE_NAMES.items()
            if summary.get(name) is not None or generate.get(name) is not None
        ],
        charts=charts_of(scored or generated, summary),
        biases=_biases(summary),
        errors=[card(score) for score in most_confident_errors(scored or generated)],
        unsure=[card(score) for score in most_unsure(scored)],
        unparsed=[card(score) for score in [s for s in generated if not s.parsed][:CARDS]],
    )
    write_page(path, html)


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What a reader has to know before he believes a figure."""
    notes = []
    if summary["groups"] < _FEW_GROUPS:
        notes.append(
            f"Only {summary['groups']} source photos: intervals over so few mean little, and the true score may be far "
            "off."
        )
    best = max(summary["floors"].items(), key=lambda floor: floor[1], default=None)
    if best and summary["accuracy"] is not None and summary["accuracy"] <= best[1]:
        notes.append(
            f"The accuracy of {summary['accuracy']:.3f} is not above the floor “{best[0].replace('_', ' ')}” of "
            f"{best[1]:.3f}, which looks at no image."
        )
    unparsed = (summary.get("generate") or {}).get("unparsed_rate") or 0
    if unparsed > 0.05:
        notes.append(f"{100 * unparsed:.0f} % of the free answers could not be read; each counts as wrong.")
    return notes


def charts_of(scores: Sequence[ItemScore], summary: dict[str, Any]) -> list[Picture]:
    """ROC, reliability, confusion and accuracy by generator, as far as the answers give them."""
    charts = []
    y, p, _, ranked = verdicts(scores)
    if ranked and 0 < y.sum() < len(y):
        charts += [roc_figure({"this run": (y, p)}), reliability_figure({"this run": (y, p)})]
    if len(y):
        said = p >= 0.5
        counts = np.array([[((y == truth) & (said == answer)).sum() for answer in (0, 1)] for truth in (0, 1)], float)
        charts.append(confusion_figure(counts, ["real", "generated"]))
    if summary["by_generator"]:
        charts.append(bars_figure(summary["by_generator"], "Accuracy by generator"))
    return charts


def most_confident_errors(scores: Sequence[ItemScore], n: int = CARDS) -> list[ItemScore]:
    return sorted((score for score in scores if score.correct < 0.5), key=confidence, reverse=True)[:n]


def most_unsure(scores: Sequence[ItemScore], n: int = CARDS, band: float = 0.1) -> list[ItemScore]:
    near = [score for score in scores if score.p_fake is not None and abs(score.p_fake - 0.5) < band]
    return sorted(near, key=lambda score: abs((score.p_fake or 0.5) - 0.5))[:n]


def confidence(score: ItemScore) -> float:
    """The probability that the item's answer was given: of the verdict, or of the option chosen."""
    if score.results[0].logprobs is None:
        return 0.0
    if score.p_fake is not None and score.kind == "true_false":
        return max(score.p_fake, 1 - score.p_fake)
    return float(option_probabilities(score.results).max()) if score.kind == "multiple_choice" else 0.5


def _biases(summary: dict[str, Any]) -> list[tuple[str, str]]:
    named = {
        "polarity_consistency": "Same verdict when asked the other way round",
        "rotation_consistency": "Same option in every rotation",
        "yes_rate": "Says yes",
        "prompt_accuracy": "Accuracy of single prompts",
        "right_verdict_wrong_reason": "Right verdict, wrong reason",
    }
    rows = [(label, f"{100 * summary[name]:.1f} %") for name, label in named.items() if summary.get(name) is not None]
    if letters := summary.get("letter_rates"):
        rows.append(("Letters chosen", ", ".join(f"{letter} {100 * share:.0f} %" for letter, share in letters.items())))
    if unsure := summary.get("unsure"):
        rows.append(
            (f"Unsure (P between {unsure['band'][0]} and {unsure['band'][1]})", f"{100 * unsure['share']:.1f} %")
        )
        if unsure["accuracy_outside"] is not None:
            rows.append(("Accuracy where sure", f"{100 * unsure['accuracy_outside']:.1f} %"))
    return rows


def _card_maker(benchmark: Benchmark) -> Callable[[ItemScore], dict[str, Any]]:
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
            "correct": score.correct,
        }

    return card


def _try_open(benchmark: Benchmark, ref: str) -> Image.Image | None:
    from vlm_detect.data.decode import ImageRejected

    try:
        return benchmark.image(ref)
    except (OSError, ImageRejected):
        return None
