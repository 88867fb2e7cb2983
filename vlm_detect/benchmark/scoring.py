"""Score a model, or recorded answers, on a VQA benchmark: the implementation of `vlm-detect benchmark`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.benchmark.answer_shards import answer_in_shards, check_launch, check_no_job
from vlm_detect.benchmark.asked import asked_items, identity_of, limited, respondent_of
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explaining import explain, explaining_facts
from vlm_detect.benchmark.explanations import explanations, read_explanations
from vlm_detect.benchmark.items import column_of, load_benchmark
from vlm_detect.benchmark.options import BenchmarkOptions
from vlm_detect.benchmark.report import write_report
from vlm_detect.benchmark.respondents import Respondent
from vlm_detect.benchmark.results import ResultWriter, read_results
from vlm_detect.benchmark.run import (
    answer_all,
    check_same_run,
    default_out,
    finished,
    needed_keys,
    print_table,
    without_refused,
)
from vlm_detect.benchmark.score import generated_result
from vlm_detect.benchmark.summary import summarise
from vlm_detect.benchmark.text_baselines import baselines_by_kind, headline_baselines
from vlm_detect.config import write_json, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.jobs.launch import Launch
from vlm_detect.locks import held
from vlm_detect.machine import best_device
from vlm_detect.models.registry import resolve_id
from vlm_detect.questions.kind import prompts_of
from vlm_detect.records import Result
from vlm_detect.schema import with_schema

_HERE = Launch()


def score(options: BenchmarkOptions, launch: Launch) -> None:
    """Write answers, metrics and a page into `--out`; says so if everything exists.

    With the default `launch` a model answers in this process, or in those that `accelerate launch` started; otherwise
    in shards.
    """
    if options.model == "auto" and not options.answers:
        options = replace(options, model=resolve_id(options.model).name)
    out = Path(options.out or default_out(options.model, options.answers))
    # needed by accelerate for several processes on a CPU
    state = PartialState(cpu=best_device().type == "cpu")
    if launch != _HERE:
        if state.num_processes > 1:
            raise UserError(
                f"--executor and --workers start processes, and accelerate has started {state.num_processes}: "
                "use one of them"
            )
        check_launch(launch, options.model)
    with held(out, when=state.is_main_process):
        if options.answers:
            score_answers(options, out)
        else:
            score_model(options, launch, out, state)


def score_model(options: BenchmarkOptions, launch: Launch, out: Path, state: PartialState) -> None:
    started = time.monotonic()
    benchmark = asked_items(options, quiet=not state.is_main_process)
    for column in options.by:
        column_of(benchmark, column, needed=True)
    respondent = respondent_of(options, out)
    if options.explanations and not respondent.explain:
        raise UserError(f"--explanations: {options.model} answers no question in words; leave it out")
    identity = identity_of(options, benchmark, respondent)
    check_same_run(out, identity, write=state.is_main_process)
    needed = needed_keys(benchmark, respondent)
    operating_point = respondent.calibration.operating_point() if respondent.calibration else None
    calibration: dict[str, Any] = {"calibration": operating_point}
    if options.explanations:
        calibration["explained"] = explaining_facts(options)
    answered = {result.key for result in read_results(out / "results.jsonl")}
    if needed <= answered and finished(out, options, benchmark, calibration):
        if state.is_main_process:
            print(f"{out}: all {len(needed)} prompts are answered, nothing is left to do")
        return
    if launch == _HERE:
        check_no_job(out)
    elif not needed <= answered and (job := answer_in_shards(options, launch, out, benchmark, respondent)):
        print(f"{out}: job {job} is queued; run the same command again when it is done")
        return
    results = answer_all(benchmark, out, state, respondent)
    facts = {**identity, **calibration, "items": len(benchmark.items)}
    benchmark, results = without_refused(benchmark, results, quiet=not state.is_main_process)
    explained = explain(options, benchmark, results, out, state, respondent) if options.explanations else None
    if state.is_main_process:  # measuring takes longer than processes wait for each other: the rest are done
        facts |= {"processes": max(state.num_processes, launch.workers), "executor": launch.executor}
        facts["device"] = str(state.device) if launch.executor == "local" else None  # on a cluster the workers' own
        seconds = time.monotonic() - started
        finish(
            options, benchmark, results, out, seconds=seconds, facts=facts, respondent=respondent, explained=explained
        )


def score_answers(options: BenchmarkOptions, out: Path) -> None:
    """Score recorded answers: the question file with `answer` filled in."""
    assert options.answers is not None
    benchmark = limited(load_benchmark(options.answers, skip_bad=options.skip_bad, need_images=False), options.limit)
    missing = [item.id for item in benchmark.items if not benchmark.answers.get(item.id, "").strip()]
    if len(missing) == len(benchmark.items):
        raise UserError(f"{options.answers}: no item has an answer; give the question file with `answer` filled in")
    check_same_run(out, {"answers": options.answers}, write=True)
    # A blank answer counts as unparsed: wrong, and counted.
    results = [generated_result(prompts_of(item)[0], benchmark.answers.get(item.id, "")) for item in benchmark.items]
    (out / "results.jsonl").unlink(missing_ok=True)
    with ResultWriter(out) as writer:
        writer.write(results)
    facts = {"answers": options.answers, "items": len(benchmark.items)}
    finish(options, benchmark, results, out, seconds=0.0, facts=facts)


def finish(
    options: BenchmarkOptions,
    benchmark: Benchmark,
    results: list[Result],
    out: Path,
    *,
    seconds: float,
    facts: dict[str, Any],
    respondent: Respondent | None = None,
    explained: dict[str, Any] | None = None,
) -> None:
    """Write summary.json, report.html and, last, run.json."""
    slices = {column: column_of(benchmark, column) for column in ("twin_kind", *options.by)}
    calibration = respondent.calibration if respondent else None
    weights = respondent.weights if respondent else None
    baselines = headline_baselines(benchmark.items)
    summary = summarise(results, baselines=baselines, slices=slices, calibration=calibration, weights=weights)
    if len(summary["by_kind"]) > 1:  # a mixture's chance is nobody's
        for kind, baselines in baselines_by_kind(benchmark.items).items():
            summary["by_kind"].setdefault(kind, {})["floors"] = baselines
    if explained := explained or explanations(read_explanations(benchmark.items, results)):
        summary["explanations"] = explained
    summary |= {
        "benchmark": benchmark.name,
        "model": options.answers or options.model,
        "skipped": len(benchmark.skipped),
    }
    summary["note"] = respondent.note if respondent else ""
    write_json(out / "summary.json", with_schema("summary", summary))
    write_report(out / "report.html", summary, results, benchmark)
    write_run_json(out, asdict(options), **facts, skipped=benchmark.skipped, seconds=round(seconds, 3))
    print_table(summary, out)
