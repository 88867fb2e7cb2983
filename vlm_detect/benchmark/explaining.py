"""The `--explanations` part of a run: checks against measurements, hidden places, a judge, the base model.

    summary["explanations"] = explain(options, benchmark, results, out, state, respondent)

The answers are lines of `results.jsonl`; those of the base are in `base/`. `explanations.jsonl` has every sentence with
its status, rewritten each time. Additional answers are in `faithfulness.jsonl`, `evidence_maps.jsonl` and
`judged_*.jsonl`, and is not asked again.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from accelerate import PartialState

from vlm_detect.benchmark import judged
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.checked import Checked
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.explanations import Explained, explanations, read_explanations
from vlm_detect.benchmark.faithfulness import asker, faithfulness_figures, probes
from vlm_detect.benchmark.hits import MappedEdit, hit_figures, mapper, planted
from vlm_detect.benchmark.judged import judged_figures, judged_statements
from vlm_detect.benchmark.options import BenchmarkOptions
from vlm_detect.benchmark.respondents import Respondent
from vlm_detect.benchmark.run import answer_all
from vlm_detect.benchmark.score import ScoringEngine
from vlm_detect.benchmark.stored_answers import StoredAnswers
from vlm_detect.benchmark.summary import rounded
from vlm_detect.generate.asked_models import AskedModel, open_model
from vlm_detect.infer.engine import Engine
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result

EXPLANATIONS = "explanations.jsonl"
_BASE = "base"
_FACTS = ("explanations", "base_explanations", "faithfulness", "judge", "judge_endpoint", "seed")
_BATCH = 8  # images whose copies, or sentences, are asked together


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
    if found and benchmark.dataset:
        checked = [row.checked for row in rows if row.checked]
        found |= rounded(_ask_further(options, benchmark.dataset, checked, out, respondent))
    if found and base:
        found["base"] = explanations(read_explanations(benchmark.items, base, **read), seed=options.seed)  # type: ignore[arg-type]
    return found


def _ask_further(
    options: BenchmarkOptions, images: DatasetImages, rows: Sequence[Checked], out: Path, respondent: Respondent
) -> dict[str, Any]:
    """The figures that take another look: of the model at copies of the images, of a judge at sentences."""
    found: dict[str, Any] = {}
    edits = planted(rows)
    places: list[str | None] = [None] * len(edits)
    wanted = probes(rows, most=options.faithfulness, seed=options.seed)
    if respondent.engine and options.faithfulness:
        engine = respondent.engine()
        if wanted:
            forgetful = (
                Engine(engine.vlm, batch_images=engine.batch_images, cache_bytes=0) if _is_local(engine) else engine
            )
            kept = StoredAnswers(out / "faithfulness.jsonl")
            records = kept.all(wanted, asker(forgetful, images), batch=_BATCH, about="named places hidden")
            found["faithfulness"] = faithfulness_figures(wanted, records)
        if _is_local(engine):
            mapped = [MappedEdit(row.item) for row in edits[: options.faithfulness]]
            maps = StoredAnswers(out / "evidence_maps.jsonl").all(
                mapped, mapper(engine, images), batch=1, about="evidence maps"
            )
            places[: len(maps)] = [one["place"] for one in maps]
    if hits := hit_figures(edits, places):
        found["hits"] = hits
    if options.judge:
        found["judged"] = _ask_judge(options, images, rows, out)
    return {name: figures for name, figures in found.items() if figures}


def _is_local(engine: ScoringEngine) -> TypeGuard[Engine]:
    return isinstance(engine, Engine)


def _ask_judge(
    options: BenchmarkOptions, images: DatasetImages, rows: Sequence[Checked], out: Path
) -> dict[str, Any] | None:
    assert options.judge is not None
    model = AskedModel(options.judge, options.judge_endpoint, options.api_key_env, options.parallel)
    if model.leaves_this_machine:
        print(f"images leave this machine: to {model}, which judges explanations", file=sys.stderr)
    wanted = judged_statements(rows, seed=options.seed)
    name = re.sub(r"[^\w.-]+", "_", str(model))
    asked = judged.asker(open_model(model), images) if wanted else None
    records = (
        StoredAnswers(out / f"judged_{name}.jsonl").all(wanted, asked, batch=_BATCH, about="judged sentences")
        if asked
        else []
    )
    figures = judged_figures(wanted, records)
    is_own = (options.judge, options.judge_endpoint) == (options.model, options.endpoint)
    return {"by": str(model), "is_the_model_itself": is_own, "specificity": figures} if figures else None


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
    """The same questions about the first of the explained images, for the model without its adapter."""
    if respondent.base is None or not options.base_explanations:
        return None
    some = [item for item in benchmark.items if KINDS[item.kind].is_open][: options.base_explanations]
    return answer_all(replace(benchmark, items=some), out / _BASE, state, respondent.base)


def _write(path: Path, rows: Sequence[Explained]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    lines = (json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
