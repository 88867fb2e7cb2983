"""Runs and score files on the same items: the implementation of `vlm-detect compare`."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vlm_detect.benchmark.compare import Run, compare, load_run
from vlm_detect.benchmark.compare_report import write_compare_report
from vlm_detect.benchmark.explained_record import explanation_record
from vlm_detect.benchmark.items import column_of, load_benchmark
from vlm_detect.benchmark.options import CompareOptions
from vlm_detect.benchmark.text_baselines import headline_baselines
from vlm_detect.config import write_json, write_run_json
from vlm_detect.errors import UserError

SHOWN = ("accuracy", "balanced_accuracy", "auroc", "ece")


def compare_runs(options: CompareOptions) -> None:
    """Write compare.json and report.html into `--out`, and print a table."""
    benchmark = load_benchmark(options.benchmark, split=options.split) if options.benchmark else None
    runs = distinct([load_run(Path(path), benchmark) for path in options.runs], options.runs)
    columns = {column: column_of(benchmark, column, needed=True) for column in options.by} if benchmark else {}
    comparison = compare(runs, by=columns)
    out = Path(options.out)
    baselines = headline_baselines(benchmark.items) if benchmark else {}
    comparison["floors"] = baselines
    write_json(out / "compare.json", comparison)
    write_compare_report(
        out / "report.html", comparison, runs, baselines=baselines, columns=options.by, benchmark=benchmark
    )
    write_run_json(out, options)
    if options.explanations:
        write_json(options.explanations, explanation_record(Path(options.runs[0]), runs[0], runs[1]))
        print(options.explanations)
    width = max(len(run.name) for run in runs) + 2
    print(" " * width + "".join(f"{name:>26}" for name in SHOWN))
    for run in runs:
        print(f"{run.name:<{width}}" + "".join(f"{cell(comparison['runs'][run.name], name):>26}" for name in SHOWN))
    print(out / "report.html")


def cell(figures: dict, name: str) -> str:
    interval = figures["ci95"].get(name)
    point = figures.get(name)
    if point is None:
        return "-"
    return f"{point:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{point:.3f}"


def distinct(runs: list[Run], paths: list[str]) -> list[Run]:
    """Runs of equal names get enough of their paths to be unique."""
    parts = [Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{' '.join(paths)}: give each run once")
    length = next(n for n in itertools.count(1) if len({found[-n:] for found in parts}) == len(parts))
    counts = Counter(run.name for run in runs)
    return [
        replace(run, name="/".join(found[-length:])) if counts[run.name] > 1 else run
        for run, found in zip(runs, parts, strict=True)
    ]
