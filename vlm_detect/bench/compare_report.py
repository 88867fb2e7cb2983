"""The page of `eval/compare.py`: several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_detect.bench.compare import Run
from vlm_detect.bench.page import reliability_figure, render, roc_figure, write_page
from vlm_detect.bench.report import FIGURE_NAMES
from vlm_detect.bench.summary import verdicts


def write_compare_report(
    path: Path,
    comparison: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    floors: Mapping[str, float],
    columns: Sequence[str],
) -> None:
    """`columns` name the slices of `comparison` ("by_<column>") that are shown beside those by generator."""
    figures = comparison["runs"]
    names = [run.name for run in runs]
    html = render(
        "compare.html.j2",
        title="Comparison of " + ", ".join(names),
        names=names,
        items=comparison["items"],
        notes=_notes(comparison, runs),
        rows=[
            {"name": label, "cells": [(figures[run][name], figures[run]["ci95"].get(name)) for run in names]}
            for name, label in FIGURE_NAMES.items()
            if any(figures[run].get(name) is not None for run in names)
        ],
        floors=", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in floors.items()),
        tests=[_test(name, test) for name, test in comparison["against_first"].items()],
        charts=_charts(runs, comparison),
        slices=[
            _by_generator(figures, names),
            *(_slice(comparison, column, names) for column in columns if column != "generator"),
        ],
    )
    write_page(path, html)


def _notes(comparison: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    notes = [
        f"{n} answers of {name} are left out: other runs have none to the same items."
        for name, n in comparison["left_out"].items()
        if n
    ]
    generated = [run.name for run in runs if run.how == "generate"]
    if generated and len(generated) < len(runs):
        notes.append(f"{', '.join(generated)}: scored by free generation, the others by probability.")
    return notes


def _charts(runs: Sequence[Run], comparison: Mapping[str, Any]) -> list[Any]:
    shared = set.intersection(*(set(run.scores) for run in runs))
    curves = {}
    for run in runs:
        y, p, _, ranked = verdicts([run.scores[id_] for id_ in sorted(shared)])
        if ranked and 0 < y.sum() < len(y):
            curves[run.name] = (y, p)
    return [roc_figure(curves), reliability_figure(curves)] if curves else []


def _test(name: str, test: Mapping[str, Any]) -> dict[str, Any]:
    def shown(figure: str) -> str:
        interval = (test.get(figure) or {}).get("difference_ci95")
        return f"{interval[0]:+.3f} to {interval[1]:+.3f} (p {test[figure]['p']:.3f})" if interval else "–"

    return {"name": name, **test["mcnemar"], "accuracy": shown("accuracy"), "auroc": shown("auroc")}


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
