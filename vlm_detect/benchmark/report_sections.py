"""The built-in sections of `report.html`, in order; rendered by the macros of `report_sections.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from vlm_detect.benchmark.explained_rows import all_few, explained_rows
from vlm_detect.benchmark.report import Report, section
from vlm_detect.benchmark.report_parts import CARDS, charts_of, kind_rows, most_confident_errors, most_unsure
from vlm_detect.pages.page import fragment
from vlm_detect.stats.intervals import FEW
from vlm_detect.stats.metrics import figure_labels

_TEMPLATE = "report_sections.html.j2"


@section("scores", title="Scores")
def scores(report: Report) -> Markup:
    summary = report.summary
    generate, calibrated = summary.get("generate"), summary.get("calibrated")
    columns = {"By log-probability" if report.scored else "Recorded answers": summary}
    columns |= {"Calibrated": calibrated} if calibrated else {}
    witnesses = summary.get("witnesses") or {}
    columns |= {f"{name.replace('_', ' ').capitalize()} alone": found for name, found in witnesses.items()}
    columns |= {"Free generation": generate} if report.scored and generate else {}
    rows = [
        {"name": label, "cells": [(c.get(name), (c.get("ci95") or {}).get(name)) for c in columns.values()]}
        for name, label in figure_labels().items()
        if any(column.get(name) is not None for column in columns.values())
    ]
    if any("fused_above" in found for found in witnesses.values()):
        above = [column.get("fused_above") or {} for column in columns.values()]
        cells = [(found.get("value"), found.get("ci95")) for found in above]
        rows.append({"name": "Accuracy of the fusion above this witness", "cells": cells})
    return fragment(_TEMPLATE, "scores", columns=list(columns), rows=rows, calibrated=calibrated)


@section("kinds", title="By kind of question")
def kinds(report: Report) -> Markup | None:
    if len(report.summary["by_kind"]) < 2:
        return None
    return fragment(_TEMPLATE, "kinds", rows=kind_rows([report.summary]))


@section("floors", title="Blind baselines")
def floors(report: Report) -> Markup:
    return fragment(_TEMPLATE, "floors", baselines=report.summary["floors"])


@section("explanations", title="Explanations")
def explanations(report: Report) -> Markup | None:
    return explanations_part(report.summary.get("explanations") or {})


def explanations_part(found: Mapping[str, Any]) -> Markup | None:
    """The figures that a summary has of explanations; None where it has none."""
    rows = explained_rows([found])
    context = {"measured": found.get("measured"), "judge": found.get("judged"), "few": FEW if all_few(rows) else 0}
    return fragment(_TEMPLATE, "explanations", rows=rows, **context) if rows else None


@section("curves", title="Curves")
def curves(report: Report) -> Markup | None:
    charts = charts_of(report.scores, report.summary)
    return fragment(_TEMPLATE, "curves", charts=charts) if charts else None


@section("habits", title="Consistency and biases")
def habits(report: Report) -> Markup | None:
    rows = _biases(report.summary)
    return fragment(_TEMPLATE, "habits", rows=rows) if rows else None


@section("slices")
def slices(report: Report) -> Markup | None:
    shown = _slices(report.summary)
    return fragment(_TEMPLATE, "slices", slices=shown) if shown else None


@section("errors", title="Most confident errors")
def errors(report: Report) -> Markup | None:
    cards = [report.card(score) for score in most_confident_errors(report.scores)]
    return fragment("pieces.html.j2", "cards", rows=cards) if cards else None


@section("unsure", title="Unsure")
def unsure(report: Report) -> Markup | None:
    cards = [report.card(score) for score in most_unsure(report.scored)]
    return fragment("pieces.html.j2", "cards", rows=cards) if cards else None


@section("unparsed", title="Unparsed answers")
def unparsed(report: Report) -> Markup | None:
    cards = [report.card(score) for score in [s for s in report.generated if not s.parsed][:CARDS]]
    return fragment(_TEMPLATE, "unparsed", rows=cards) if cards else None


def _slices(summary: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Accuracy by every column with at least two values, except generators, which have a chart."""
    shown = []
    for name, by in summary.items():
        if name.startswith("by_") and name not in ("by_kind", "by_generator") and len(by) > 1:
            rows = [{"name": value, "n": f["n"], "cells": [(f["accuracy"], f["ci95"])]} for value, f in by.items()]
            shown.append((name.removeprefix("by_").replace("_", " "), rows))
    return shown


def _biases(summary: dict[str, Any]) -> list[tuple[str, str]]:
    named = {
        "polarity_consistency": "Same verdict in the opposite polarity",
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
