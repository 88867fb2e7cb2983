"""The page of `vlm-detect compare`: several runs in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.compare import Run
from vlm_detect.benchmark.explained_rows import all_few, explained_rows
from vlm_detect.benchmark.item_scores import ItemScore, verdicts
from vlm_detect.benchmark.perturb import UNITS
from vlm_detect.benchmark.report_parts import (
    CARDS,
    card_maker,
    confidence,
    confusion_counts,
    kind_rows,
    most_unsure,
)
from vlm_detect.pages.page import (
    Picture,
    confusion_figure,
    grouped_bars_figure,
    lines_figure,
    reliability_figure,
    render,
    roc_figure,
    write_page,
)
from vlm_detect.questions.kind import KINDS
from vlm_detect.stats.intervals import FEW
from vlm_detect.stats.metrics import figure_labels

_CALIBRATED = ("accuracy", "balanced_accuracy", "ece", "brier")


def write_compare_report(
    path: Path,
    comparison: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    baselines: Mapping[str, float],
    columns: Sequence[str],
    benchmark: Benchmark | None = None,
) -> None:
    """`columns` name the slices of `comparison` ("by_<column>") to show in addition to those by generator.

    With the `benchmark`, items that most runs get wrong, and items that runs are unsure of, are shown as images.
    """
    figures = comparison["runs"]
    names = [run.name for run in runs]
    errors, unsure = _cards(runs, comparison, benchmark) if benchmark else ([], [])
    explained = explained_rows([run.explained or {} for run in runs])
    html = render(
        "compare.html.j2",
        title="Comparison of " + ", ".join(names),
        names=names,
        items=comparison["items"],
        notes=_notes(comparison, runs),
        rows=_score_rows(figures, names),
        kinds=kind_rows([figures[name] for name in names], auroc=False),
        explained=explained,
        explained_few=FEW if all_few(explained) else 0,
        baselines=", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in baselines.items()),
        tests=[_test(name, test) for name, test in comparison["against_first"].items()],
        charts=_charts(runs, comparison),
        robustness=_robustness_charts(runs),
        tiers=_tier_rows(runs),
        robust_names=[run.name for run in runs if run.robustness],
        slices=[
            _by_generator(figures, names),
            *(_slice(comparison, column, names) for column in columns if column != "generator"),
        ],
        errors=errors,
        unsure=unsure,
    )
    write_page(path, html)


def _score_rows(figures: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every metric that some run has; calibrated metrics below."""
    labels = figure_labels()
    tables = [("", {name: figures[name] for name in names}, tuple(labels))]
    tables += [(", calibrated", {name: figures[name].get("calibrated") or {} for name in names}, _CALIBRATED)]
    edits = {name: figures[name].get("edits") or {} for name in names}
    tables += [(", questions about edits", edits, ("accuracy", "auroc"))]
    witnesses = {witness: None for name in names for witness in figures[name].get("witnesses") or {}}
    for witness in witnesses:
        alone = {name: (figures[name].get("witnesses") or {}).get(witness) or {} for name in names}
        tables += [(f", {witness.replace('_', ' ')} alone", alone, ("accuracy", "balanced_accuracy", "auroc"))]
    return [
        {
            "name": labels[figure] + suffix,
            "cells": [(table[name].get(figure), (table[name].get("ci95") or {}).get(figure)) for name in names],
        }
        for suffix, table, wanted in tables
        for figure in wanted
        if any(table[name].get(figure) is not None for name in names)
    ]


def _notes(comparison: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    notes = [
        f"{n} answers of {name} are excluded: other runs have no answers to these items."
        for name, n in comparison["left_out"].items()
        if n
    ]
    notes += [f"{run.name}: {run.note}" for run in runs if run.note]
    generated = [run.name for run in runs if run.how == "generate"]
    if generated and len(generated) < len(runs):
        notes.append(f"{', '.join(generated)}: scored by free generation, the others by probability.")
    return notes


def _charts(runs: Sequence[Run], comparison: Mapping[str, Any]) -> list[Picture]:
    shared = _shared(runs)
    curves, confusions = {}, []
    for run in runs:
        scores = [run.scores[id_] for id_ in shared]
        y, p, _, ranked = verdicts(scores)
        if ranked and 0 < y.sum() < len(y):
            curves[run.name] = (y, p)
        if len(y):
            counts = confusion_counts(y, p)
            confusions.append(confusion_figure(counts, ["real", "generated"], f"Confusion, {run.name}"))
    by_generator = {run.name: comparison["runs"][run.name]["by_generator"] for run in runs}
    bars = [grouped_bars_figure(by_generator, "Accuracy by generator")] if any(by_generator.values()) else []
    return [*([roc_figure(curves), reliability_figure(curves)] if curves else []), *bars, *confusions]


def _robustness_charts(runs: Sequence[Run]) -> list[Picture]:
    """One chart per curve with the AUROC of every run whose robustness was measured."""
    charts = []
    for family, unit in UNITS.items():
        lines, clean = {}, {}
        for run in runs:
            conditions = (run.robustness or {}).get("conditions", {})
            rows = [row for row in conditions.values() if row["family"] == family]
            points = [(row["level"], row["both"]["auroc"]) for row in rows if row["both"]["auroc"] is not None]
            if points:
                lines[run.name], clean[run.name] = points, conditions["clean"]["both"]["auroc"]
        if lines:
            charts.append(lines_figure(lines, clean, unit=unit, title=f"Robustness: {family}"))
    return charts


def _tier_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Balanced accuracy of each run under each tier."""
    measured = [run for run in runs if run.robustness]
    tiers = {
        name: row
        for run in measured
        for name, row in (run.robustness or {})["conditions"].items()
        if row["family"] == "tier"
    }
    rows = []
    for tier in tiers:
        found = [((run.robustness or {})["conditions"].get(tier) or {}).get("both") or {} for run in measured]
        cells = [(f.get("balanced_accuracy"), (f.get("ci95") or {}).get("balanced_accuracy")) for f in found]
        rows.append({"name": tier, "n": max(f.get("n", 0) for f in found), "cells": cells})
    return rows


def _cards(
    runs: Sequence[Run], comparison: Mapping[str, Any], benchmark: Benchmark
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The items that most runs get wrong, most confident first, and the items that runs are least sure of."""
    card = card_maker(benchmark)
    wrong: list[tuple[int, float, ItemScore]] = []
    near: list[ItemScore] = []
    for id_ in _shared(runs):
        answered = [run.scores[id_] for run in runs if run.scores[id_].results]
        scores = [score for score in answered if not KINDS[score.kind].is_open]
        errors = [score for score in scores if score.correct < 0.5]
        if errors:
            surest = max(errors, key=confidence)
            wrong.append((len(errors), confidence(surest), surest))
        near += most_unsure(scores, 1)
    wrong.sort(key=lambda entry: entry[:2], reverse=True)
    errors_shown = [
        {**card(score), "question": f"{n} of {len(runs)} runs are wrong. {card(score)['question']}"}
        for n, _, score in wrong[:CARDS]
    ]
    return errors_shown, [card(score) for score in most_unsure(near)]


def _shared(runs: Sequence[Run]) -> list[str]:
    return sorted(set.intersection(*(set(run.scores) for run in runs)))


def _test(name: str, test: Mapping[str, Any]) -> dict[str, Any]:
    def shown(figure: str) -> str:
        interval = (test.get(figure) or {}).get("difference_ci95")
        return f"{interval[0]:+.3f} to {interval[1]:+.3f} (p {_p(test[figure]['p'])})" if interval else "–"

    counts = test["mcnemar"] | {"p": _p(test["mcnemar"]["p"])}
    return {"name": name, **counts, "accuracy": shown("accuracy"), "auroc": shown("auroc")}


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _by_generator(figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    generators = sorted({generator for name in names for generator in figures[name]["by_generator"]})
    by = {g: {name: figures[name]["by_generator"].get(g, {}) for name in names} for g in generators}
    return {"column": "generator", "rows": [_row(g, by[g], names) for g in generators]}


def _slice(comparison: Mapping[str, Any], column: str, names: Sequence[str]) -> dict[str, Any]:
    rows = comparison[f"by_{column}"]
    return {"column": column.replace("_", " "), "rows": [_row(value, rows[value], names) for value in rows]}


def _row(value: str, by_run: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    def interval(name: str) -> Any:
        found = by_run[name].get("ci95")
        return found.get("accuracy") if isinstance(found, Mapping) else found

    cells = [(by_run[name].get("accuracy"), interval(name)) for name in names]
    return {"name": value, "n": max(by_run[name].get("n", 0) for name in names), "cells": cells}
