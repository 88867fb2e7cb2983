"""Score a model, or recorded answers, on a VQA benchmark.

    accelerate launch eval/vqa_benchmark.py --model runs/moondream_lora --benchmark data/pairs
    python eval/vqa_benchmark.py --model nano --benchmark vqa_multiple_choice_benchmark.json --out runs/nano/eval
    python eval/vqa_benchmark.py --model runs/cnn --benchmark data/vqa/benchmark.json
    python eval/vqa_benchmark.py --endpoint http://localhost:8000/v1 --model qwen2.5-vl --benchmark benchmark.json
    python eval/vqa_benchmark.py --answers answers.json --out runs/answers

The benchmark is a JSON or JSONL file of items, or the folder of a pair or image dataset, whose test split is then
asked the yes/no questions. Out come results.jsonl (one line an answered prompt), summary.json, report.html and
run.json. Started again, the same command goes on where it was interrupted, or says that nothing is left to do.
Several processes share the images and write one result. An endpoint's key is read from the variable that
--api_key_env names.

It does not choose a threshold, a prompt or an epoch: those belong to the validation split (`vlm-detect calibrate`).
"""

from __future__ import annotations

import vlm_detect  # isort: skip  # noqa: F401 (before torch: see there)
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explanations import explanations
from vlm_detect.benchmark.floors import chief_floors, floors_by_kind
from vlm_detect.benchmark.items import column_of, load_benchmark
from vlm_detect.benchmark.report import write_report
from vlm_detect.benchmark.respondents import Respondent, endpoint_respondent, respondent_for
from vlm_detect.benchmark.results import ResultWriter, read_results
from vlm_detect.benchmark.run import (
    answer_all,
    check_same_run,
    default_out,
    finished,
    needed_keys,
    print_table,
    settings_of,
)
from vlm_detect.benchmark.score import generated_result
from vlm_detect.benchmark.summary import summarise
from vlm_detect.config import parse_config, write_json, write_run_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import best_device
from vlm_detect.models.registry import resolve_id
from vlm_detect.questions.kind import prompts_of
from vlm_detect.records import Result
from vlm_detect.schema import with_schema


@dataclass(frozen=True)
class BenchmarkConfig:
    model: str = field(default="auto", metadata={"help": "A run directory, a Hub id, a local folder, nano or auto."})
    adapter: str | None = field(default=None, metadata={"help": "A run directory whose LoRA is put on --model."})
    endpoint: str | None = field(
        default=None, metadata={"help": "URL of an OpenAI-compatible endpoint (.../v1) that has --model."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key."}
    )
    parallel: int = field(default=8, metadata={"help": "Requests to the endpoint at a time."})
    benchmark: str | None = field(
        default=None, metadata={"help": "A JSON or JSONL file of items, or a dataset folder."}
    )
    answers: str | None = field(default=None, metadata={"help": "Score these recorded answers; no model is loaded."})
    out: str | None = field(default=None, metadata={"help": "Folder for the results; default <run>/eval."})
    split: str = field(default="test", metadata={"help": "Which split of a dataset folder is asked about."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad items out and count them."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many items."})
    generate: bool = field(default=True, metadata={"help": "Also answer freely, with a strict parse."})
    max_new_tokens: int = field(default=16, metadata={"help": "Length of a free answer, in tokens."})
    explanation_tokens: int = field(default=96, metadata={"help": "Length of an answer to an open question."})
    batch_size: int = field(default=8, metadata={"help": "Images encoded together."})
    by: list[str] = field(default_factory=list, metadata={"help": "Further metadata columns to slice the scores by."})


def main(argv: list[str]) -> int:
    (config,) = parse_config([BenchmarkConfig], argv, doc=__doc__)
    if bool(config.benchmark) == bool(config.answers):
        print("error: give either --benchmark (with --model) or --answers", file=sys.stderr)
        return 2
    if config.limit is not None and config.limit < 1:
        print(f"error: --limit {config.limit}: at least 1 item is needed", file=sys.stderr)
        return 2
    if config.endpoint and (config.model == "auto" or config.adapter):
        print(
            "error: --endpoint needs the --model that it has, by its name there, and no --adapter",
            file=sys.stderr,
        )
        return 2
    if config.model == "auto" and not config.answers:
        config = replace(config, model=resolve_id(config.model).name)
    out = Path(config.out or default_out(config.model, config.answers))
    return score_answers(config, out) if config.answers else score_model(config, out)


def score_model(config: BenchmarkConfig, out: Path) -> int:
    started = time.monotonic()
    assert config.benchmark is not None
    benchmark = limited(load_benchmark(config.benchmark, split=config.split, skip_bad=config.skip_bad), config.limit)
    for column in config.by:
        column_of(benchmark, column, needed=True)
    # Told so, accelerate lets several processes meet on a CPU as well.
    state = PartialState(cpu=best_device().type == "cpu")
    respondent = respondent_of(config, out)
    lengths = {name: getattr(config, name) for name in ("max_new_tokens", "explanation_tokens")}
    identity = {**respondent.identity, **lengths, "benchmark_sha256": benchmark.sha256}
    check_same_run(out, identity, write=state.is_main_process)
    needed = needed_keys(benchmark, respondent)
    calibration = {"calibration": asdict(respondent.calibration) if respondent.calibration else None}
    answered = {result.key for result in read_results(out / "results.jsonl")}
    if needed <= answered and finished(out, config, benchmark, calibration):
        if state.is_main_process:
            print(f"{out}: all {len(needed)} prompts are answered, nothing is left to do")
        return 0
    results = answer_all(benchmark, out, state, respondent)
    if state.is_main_process:
        facts = {**identity, **calibration, "processes": state.num_processes, "device": str(state.device)}
        seconds = time.monotonic() - started
        finish(config, benchmark, results, out, seconds=seconds, facts=facts, respondent=respondent)
    state.wait_for_everyone()
    return 0


def respondent_of(config: BenchmarkConfig, out: Path) -> Respondent:
    options = {
        name: getattr(config, name) for name in ("generate", "batch_size", "max_new_tokens", "explanation_tokens")
    }
    if not config.endpoint:
        return respondent_for(config.model, adapter=config.adapter, **options)
    return endpoint_respondent(
        config.endpoint,
        config.model,
        key_variable=config.api_key_env,
        parallel=config.parallel,
        options=settings_of(out).get("options"),
        **options,
    )


def score_answers(config: BenchmarkConfig, out: Path) -> int:
    """Answers that were recorded elsewhere: the question file with `answer` filled in."""
    assert config.answers is not None
    benchmark = limited(load_benchmark(config.answers, skip_bad=config.skip_bad, need_images=False), config.limit)
    missing = [item.id for item in benchmark.items if not benchmark.answers.get(item.id, "").strip()]
    if len(missing) == len(benchmark.items):
        raise UserError(f"{config.answers}: no item has an answer; it is the question file with `answer` filled in")
    check_same_run(out, {"answers": config.answers}, write=True)
    # A blank answer is an unparsed one: wrong, and counted.
    results = [generated_result(prompts_of(item)[0], benchmark.answers.get(item.id, "")) for item in benchmark.items]
    (out / "results.jsonl").unlink(missing_ok=True)
    with ResultWriter(out) as writer:
        writer.write(results)
    finish(config, benchmark, results, out, seconds=0.0, facts={"answers": config.answers})
    return 0


def finish(
    config: BenchmarkConfig,
    benchmark: Benchmark,
    results: list[Result],
    out: Path,
    *,
    seconds: float,
    facts: dict[str, Any],
    respondent: Respondent | None = None,
) -> None:
    """summary.json, report.html and, last, run.json."""
    slices = {column: column_of(benchmark, column) for column in ("twin_kind", *config.by)}
    calibration = respondent.calibration if respondent else None
    summary = summarise(results, floors=chief_floors(benchmark.items), slices=slices, calibration=calibration)
    if len(summary["by_kind"]) > 1:  # a mixture's chance is nobody's
        for kind, floors in floors_by_kind(benchmark.items).items():
            summary["by_kind"].setdefault(kind, {})["floors"] = floors
    if explained := explanations(benchmark.items, results):
        summary["explanations"] = explained
    summary |= {"benchmark": benchmark.name, "model": config.answers or config.model, "skipped": len(benchmark.skipped)}
    summary["note"] = respondent.note if respondent else ""
    write_json(out / "summary.json", with_schema("summary", summary))
    write_report(out / "report.html", summary, results, benchmark)
    write_run_json(
        out, asdict(config), **facts, items=len(benchmark.items), skipped=benchmark.skipped, seconds=round(seconds, 3)
    )
    print_table(summary, out)


def limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    return replace(benchmark, items=benchmark.items[:limit]) if limit else benchmark


if __name__ == "__main__":
    run_main(main)
