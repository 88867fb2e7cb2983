"""What `--explanations` adds to a run: explanations held against measurements, and those of the base model.

    summary["explanations"] = explain(options, benchmark, results, out, state, respondent)

The answers are lines of `results.jsonl`; those of the base are in `base/`. `explanations.jsonl` has every sentence with
its status, written anew each time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explanations import Explained, explanations, read_explanations
from vlm_detect.benchmark.options import BenchmarkOptions
from vlm_detect.benchmark.respondents import Respondent
from vlm_detect.benchmark.run import answer_all
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result

EXPLANATIONS = "explanations.jsonl"
_BASE = "base"
_FACTS = ("explanations", "base_explanations", "seed")


def explaining_facts(options: BenchmarkOptions) -> dict[str, Any]:
    """The settings that change what the explanations' figures are."""
    return {name: getattr(options, name) for name in _FACTS}


def explain(
    options: BenchmarkOptions,
    benchmark: Benchmark,
    results: Sequence[Result],
    out: Path,
    state: PartialState,
    respondent: Respondent,
) -> dict[str, Any] | None:
    """The figures of the explanations in `results`; None in every process but the main one. All have to call this."""
    base = _ask_base(options, benchmark, out, state, respondent)
    if not state.is_main_process:
        return None
    calibration, source = measures_of(options, benchmark)
    if calibration is None:
        print(
            f"neither {options.benchmark} nor {options.adapter or options.model} has measures.json, so no sentence can "
            "be checked; vlm-detect add-reasons makes a dataset that has",
            file=sys.stderr,
        )
    read = {"dataset": benchmark.dataset, "calibration": calibration}
    rows = read_explanations(benchmark.items, results, **read)  # type: ignore[arg-type]
    _write(out / EXPLANATIONS, rows)
    found = explanations(rows, seed=options.seed)
    if found and source:
        found["measured_by"] = source
    if found and base:
        found["base"] = explanations(read_explanations(benchmark.items, base, **read), seed=options.seed)  # type: ignore[arg-type]
    return found


def measures_of(options: BenchmarkOptions, benchmark: Benchmark) -> tuple[MeasureCalibration | None, str]:
    """What is usual of photos, and the folder that says so: the dataset, so that runs over it compare, or the run."""
    if benchmark.dataset and (found := benchmark.dataset.calibration):
        return found, str(benchmark.dataset.folder)
    run = options.adapter or options.model
    found = MeasureCalibration.load(Path(run))
    return found, run if found else ""


def _ask_base(
    options: BenchmarkOptions, benchmark: Benchmark, out: Path, state: PartialState, respondent: Respondent
) -> list[Result] | None:
    """The same questions about the first of the explained images, asked of the model without its adapter."""
    if respondent.base is None or not options.base_explanations:
        return None
    some = [item for item in benchmark.items if KINDS[item.kind].is_open][: options.base_explanations]
    return answer_all(replace(benchmark, items=some), out / _BASE, state, respondent.base)


def _write(path: Path, rows: Sequence[Explained]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
