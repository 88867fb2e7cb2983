"""`report.html`: one self-contained page on one run, from its summary and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.summary import ItemScore, item_scores, option_probabilities, verdicts
from vlm_detect.pages.page import (
    Picture,
    bars_figure,
    confusion_figure,
    photo,
    reliability_figure,
    render,
    roc_figure,
    write_page,
)
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result
from vlm_detect.stats.metrics import Array, figure_labels

CARDS = 12
_FEW_GROUPS = 30


def write_report(path: str | Path, summary: dict[str, Any], results: Sequence[Result], benchmark: Benchmark) -> None:
    """Write the page; images that cannot be opened any more (recorded answers) are left out of the cards."""
    # Open questions have figures of their own, and no right answer to show on a card.
    closed = [result for result in results if not KINDS[result.kind].is_open] or results
    scored, generated = item_scores(closed, "logprob"), item_scores(closed, "generate")
    generate, calibrated = summary.get("generate"), summary.get("calibrated")
    columns = {"By log-probability" if scored else "Recorded answers": summary}
    columns |= {"Calibrated": calibrated} if calibrated else {}
    columns |= {"Free generation": generate} if scored and generate else {}
    card = card_maker(benchmark)
    html = render(
        "report.html.j2",
        title=f"{benchmark.name}: benchmark report",
        summary=summary,
        notes=notes_of(summary),
        columns=list(columns),
        rows=[
            {"name": label, "cells": [(c.get(name), (c.get("ci95") or {}).get(name)) for c in columns.values()]}
            for name, label in figure_labels().items()
            if any(column.get(name) is not None for column in columns.values())
        ],
        calibrated=calibrated,
        kinds=kind_rows([summary]) if len(summary["by_kind"]) > 1 else [],
        explained=explained_rows(summary.get("explanations") or {}),
        slices=_slices(summary),
        charts=charts_of(scored or generated, summary),
        biases=_biases(summary),
        errors=[card(score) for score in most_confident_errors(scored or generated)],
        unsure=[card(score) for score in most_unsure(scored)],
        unparsed=[card(score) for score in [s for s in generated if not s.parsed][:CARDS]],
    )
    write_page(path, html)


def kind_rows(summaries: Sequence[dict[str, Any]], *, auroc: bool = True) -> list[dict[str, Any]]:
    """A row for each kind of question, edits apart: n, its greatest floor, and each summary's figures."""
    kinds = sorted({kind for summary in summaries for kind in summary["by_kind"]})
    rows = []
    for kind in kinds:
        figures = [summary["by_kind"].get(kind) or {} for summary in summaries]
        floors = [value for figure in figures for value in (figure.get("floors") or {}).values() if value is not None]
        names = ("accuracy", "auroc") if auroc else ("accuracy",)
        cells = [(figure.get(name), (figure.get("ci95") or {}).get(name)) for figure in figures for name in names]
        n = max(figure.get("n", 0) for figure in figures)
        rows.append({"name": kind.replace("_", " "), "n": n, "floor": max(floors, default=None), "cells": cells})
    return rows


def explained_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The explanations' figures by what they say; those that there are."""
    edits = found.get("edits") or {}
    told = {
        "Verdict in words is right": found.get("verdict_accuracy"),
        "Verdict in words is the scored one": found.get("agreement"),
        "Reasons contradict the verdict": found.get("contradictions"),
        "Photos with an invented fault": found.get("faults_on_photos"),
        "Generated images with a named fault": found.get("faults_on_generated"),
        "Planted edits: operation named": edits.get("operation_named"),
        "Planted edits: place named": edits.get("place_named"),
        "Planted edits: both named": edits.get("both_named"),
    }
    rows = [{"name": name, "n": f["n"], "cells": [(f["share"], f["ci95"])]} for name, f in told.items() if f]
    if found.get("rouge_l") is not None:
        rows.append({"name": "ROUGE-L against the references", "n": found["n"], "cells": [(found["rouge_l"], None)]})
    return rows


def _slices(summary: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Accuracy by every column that has at least two values, generators aside: they have a chart."""
    shown = []
    for name, by in summary.items():
        if name.startswith("by_") and name not in ("by_kind", "by_generator") and len(by) > 1:
            rows = [{"name": value, "n": f["n"], "cells": [(f["accuracy"], f["ci95"])]} for value, f in by.items()]
            shown.append((name.removeprefix("by_").replace("_", " "), rows))
    return shown


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What a reader has to know before he believes a figure."""
    notes = [summary["note"]] if summary.get("note") else []
    if summary["groups"] < _FEW_GROUPS:
        notes.append(
            f"Only {summary['groups']} source photos: intervals over so few mean little, and the true score may be far "
            "off."
        )
    kinds = {kind: figures for kind, figures in (summary.get("by_kind") or {}).items() if figures.get("floors")}
    for kind, figures in (kinds or {"": summary}).items():
        best = max(figures["floors"].items(), key=lambda floor: floor[1], default=None)
        if best and figures["accuracy"] is not None and figures["accuracy"] <= best[1]:
            about = f" in {kind.replace('_', ' ')}" if kind else ""
            notes.append(
                f"The accuracy of {figures['accuracy']:.3f}{about} is not above the floor "
                f"“{best[0].replace('_', ' ')}” of {best[1]:.3f}, which looks at no image."
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
        charts.append(confusion_figure(confusion_counts(y, p), ["real", "generated"]))
    if summary["by_generator"]:
        charts.append(bars_figure(summary["by_generator"], "Accuracy by generator"))
    return charts


def confusion_counts(y: Array, p: Array) -> Array:
    """(2, 2): true class by the class that was said."""
    said = p >= 0.5
    return np.array([[((y == truth) & (said == answer)).sum() for answer in (0, 1)] for truth in (0, 1)], float)


def most_confident_errors(scores: Sequence[ItemScore], n: int = CARDS) -> list[ItemScore]:
    return sorted((score for score in scores if score.correct < 0.5), key=confidence, reverse=True)[:n]


def most_unsure(scores: Sequence[ItemScore], n: int = CARDS, band: float = 0.1) -> list[ItemScore]:
    near = [score for score in scores if score.p_fake is not None and abs(score.p_fake - 0.5) < band]
    return sorted(near, key=lambda score: abs((score.p_fake or 0.5) - 0.5))[:n]


def confidence(score: ItemScore) -> float:
    """The probability that the item's answer was given: of the verdict, or of the option chosen."""
    if score.results[0].logprobs is None:
        return 0.0
    kind = KINDS[score.kind]
    if score.p_fake is not None and kind.is_verdict:
        return max(score.p_fake, 1 - score.p_fake)
    return float(option_probabilities(score.results).max()) if kind.chooses else 0.5


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
    if calibrated := summary.get("calibrated"):
        rows.append(("Unsure, calibrated", f"{100 * calibrated['unsure']['share']:.1f} %"))
        if calibrated["unsure"]["accuracy_outside"] is not None:
            rows.append(("Accuracy where sure, calibrated", f"{100 * calibrated['unsure']['accuracy_outside']:.1f} %"))
    return rows


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
        }

    return card


def _try_open(benchmark: Benchmark, ref: str) -> Image.Image | None:
    from vlm_detect.images.decode import ImageRejected

    try:
        return benchmark.image(ref)
    except (OSError, ImageRejected):
        return None
