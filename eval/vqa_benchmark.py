"""Score a model, or recorded answers, on a VQA benchmark.

    accelerate launch eval/vqa_benchmark.py --model runs/moondream_lora --benchmark data/pairs
    python eval/vqa_benchmark.py --model nano --benchmark vqa_multiple_choice_benchmark.json --out runs/nano/eval
    python eval/vqa_benchmark.py --answers answers.json --out runs/answers

The benchmark is a JSON or JSONL file of items, or the folder of a pair or image dataset, whose test split is then
asked the yes/no questions. Out come results.jsonl (one line an answered prompt), summary.json, report.html and
run.json. Started again, the same command goes on where it was interrupted, or says that nothing is left to do.
Several processes share the images and write one result.

It does not choose a threshold, a prompt or an epoch: those belong to the validation split (`vlm-detect calibrate`).
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.bench.floors import floors_by_kind, text_floors
from vlm_detect.bench.items import Benchmark, column_of, load_benchmark
from vlm_detect.bench.prompts import prompts_of
from vlm_detect.bench.report import write_report
from vlm_detect.bench.results import ResultWriter, read_results
from vlm_detect.bench.run import (
    answer_all,
    check_same_run,
    default_out,
    finished,
    model_identity,
    needed_keys,
    print_table,
)
from vlm_detect.bench.score import generated_result
from vlm_detect.bench.summary import summarise
from vlm_detect.config import parse_config, write_json, write_run_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.infer.engine import Engine
from vlm_detect.models.registry import default_device, load_vlm, resolve_id
from vlm_detect.records import Result


@dataclass(frozen=True)
class BenchmarkConfig:
    model: str = field(default="auto", metadata={"help": "A run directory, a Hub id, a local folder, nano or auto."})
    adapter: str | None = field(default=None, metadata={"help": "A run directory whose LoRA is put on --model."})
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
    state = PartialState(cpu=default_device().type == "cpu")
    identity = {**model_identity(config.model, config.adapter), "benchmark_sha256": benchmark.sha256}
    check_same_run(out, identity, write=state.is_main_process)
    needed = needed_keys(benchmark, generate=config.generate)
    if finished(out, config, benchmark) and needed <= {result.key for result in read_results(out / "results.jsonl")}:
        if state.is_main_process:
            print(f"{out}: all {len(needed)} prompts are answered, nothing is left to do")
        return 0
    results = answer_all(
        benchmark,
        out,
        state,
        lambda: Engine(load_vlm(config.model, adapter=config.adapter)),
        generate=config.generate,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
    )
    if state.is_main_process:
        facts = {**identity, "processes": state.num_processes, "device": str(state.device)}
        finish(config, benchmark, results, out, seconds=time.monotonic() - started, facts=facts)
    state.wait_for_everyone()
    return 0


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
) -> None:
    """summary.json, report.html and, last, run.json."""
    slices = {column: column_of(benchmark, column) for column in ("twin_kind", *config.by)}
    summary = summarise(results, floors=text_floors(benchmark.items), slices=slices)
    if len(summary["by_kind"]) > 1:  # a mixture's chance is nobody's
        for kind, floors in floors_by_kind(benchmark.items).items():
            summary["by_kind"].setdefault(kind, {})["floors"] = floors
    summary |= {"benchmark": benchmark.name, "model": config.answers or config.model, "skipped": len(benchmark.skipped)}
    write_json(out / "summary.json", summary)
    write_report(out / "report.html", summary, results, benchmark)
    write_run_json(
        out, asdict(config), **facts, items=len(benchmark.items), skipped=benchmark.skipped, seconds=round(seconds, 3)
    )
    print_table(summary, out)


def limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    return replace(benchmark, items=benchmark.items[:limit]) if limit else benchmark


if __name__ == "__main__":
    run_main(main)
