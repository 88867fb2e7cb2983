"""A run's folder: the identity of its answers, computing missing ones, and the final table.

results = answer_all(benchmark, out, state, respondent)       # resumed, shared among processes, merged
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explained_rows import figure_at, is_of_few
from vlm_detect.benchmark.respondents import Respondent
from vlm_detect.benchmark.results import RESULTS, Key, ResultWriter, merge, read_results
from vlm_detect.benchmark.score import key_of, plan
from vlm_detect.config import read_run_json, write_json
from vlm_detect.errors import UserError
from vlm_detect.progress import progress
from vlm_detect.records import Item, Result
from vlm_detect.schema import check_schema, with_schema

_SETTINGS = "settings.json"  # the identity of the answers in results.jsonl; written before the first answer
_EXPLAINED = (
    "measured.claims_an_image",
    "measured.truth",
    "measured.truth_of_another_image",
    "measured.truth_of_constant",
    "measured.specificity",
    "measured.false_faults_on_photos",
    "measured.unchecked_sentences",
    "contradictions",
    "faithfulness.hiding",
    "faithfulness.pasting",
    "hits.named.hit",
    "hits.evidence_map.hit",
    "hits.chance.hit",
    "judged.specificity",
)
_SHOWN = ("accuracy", "balanced_accuracy", "auroc", "ap", "fpr_at_95_tpr", "ece", "brier")


def default_out(model: str, answers: str | None) -> Path:
    """`<run>/eval` for a run directory, otherwise `runs/<name>/eval`."""
    if answers:
        return Path("runs") / Path(answers).stem / "eval"
    run = Path(model)
    return run / "eval" if run.is_dir() else Path("runs") / model.replace("/", "--") / "eval"


def check_same_run(out: Path, identity: dict[str, Any], *, write: bool) -> None:
    """`UserError` where `out` has answers of another model or to another benchmark."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    before = settings_of(out)
    if before and _has_answers(out):
        if differing := [name for name in identity if before.get(name) != identity[name]]:
            name = differing[0]
            raise UserError(
                f"{out} contains the answers of another run ({name} was {before.get(name)}, is {identity[name]}); "
                "choose another --out, or remove that folder"
            )
    elif write:
        write_json(out / _SETTINGS, with_schema("results", identity))


def check_unchanged(out: Path, identity: dict[str, Any]) -> None:
    """`UserError` where the model or the benchmark is no longer what the run in `out` was started with."""
    before = settings_of(out)
    if differing := [name for name in identity if before.get(name) != identity[name]]:
        name = differing[0]
        raise UserError(
            f"{out}: {name} has changed since this run was started (was {before.get(name)}, is {identity[name]}); "
            "give another --out"
        )


def _has_answers(out: Path) -> bool:
    """Whether anything was answered: a run that failed while loading its model leaves only its settings."""
    return any(read_results(path) for path in out.rglob("results*.jsonl"))


def settings_of(out: Path) -> dict[str, Any]:
    """The identity of the answers in `out`; empty without answers."""
    path = out / _SETTINGS
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    check_schema("results", found, path)
    return found


def finished(out: Path, config: Any, benchmark: Benchmark, facts: dict[str, Any]) -> bool:
    """Whether `out` has a complete run over exactly these items, summarized with these `facts`."""
    run = read_run_json(out)
    if run is None or not all((out / name).is_file() for name in ("summary.json", "report.html")):
        return False
    facts = {**facts, "items": len(benchmark.items)}
    return run["config"].get("by") == config.by and all(_is_same(run.get(name), fact) for name, fact in facts.items())


def _is_same(recorded: Any, fact: Any) -> bool:
    """Whether a record agrees with this fact; an option newer than the record had its default."""
    if isinstance(recorded, dict) and isinstance(fact, dict):
        return all(name in fact and fact[name] == value for name, value in recorded.items())
    return bool(recorded == fact)


def needed_keys(benchmark: Benchmark, respondent: Respondent) -> set[Key]:
    """The keys of a complete run over `benchmark`."""
    asked_about = plan(benchmark, logprob=respondent.logprob, generate=respondent.generate, explain=respondent.explain)
    return {key_of(*asked) for image in asked_about for asked in image}


def answer_all(
    benchmark: Benchmark,
    out: Path,
    state: PartialState,
    respondent: Respondent,
    *,
    image_of: Callable[[Item], Image.Image] | None = None,
) -> list[Result]:
    """Compute the answers missing in `out`, each process its share, and return all in the items' order.

    `respondent` is started only if answers are missing. Every process has to call this.
    """
    order = [item.id for item in benchmark.items]
    if state.is_main_process:
        merge(out, order)  # of an interrupted run, possibly with another number of processes
    state.wait_for_everyone()
    needed = needed_keys(benchmark, respondent)
    done = {result.key for result in read_results(out / RESULTS)} & needed
    if done != needed:
        answer = respondent.start()
        if state.is_main_process and done:
            print(f"{len(done)} of {len(needed)} prompts are already answered; continuing", file=sys.stderr)
        share = -(-(len(needed) - len(done)) // state.num_processes)
        bar = progress(desc="benchmark", total=share, unit="prompts", quiet=not state.is_main_process)
        with bar, ResultWriter(out, state.process_index) as writer:
            shard = slice(state.process_index, None, state.num_processes)
            for results in answer(benchmark, done=done, shard=shard, image_of=image_of):
                writer.write(results)
                bar.update(len(results))
    state.wait_for_everyone()
    if state.is_main_process:
        merge(out, order)
    state.wait_for_everyone()
    found = [result for result in read_results(out / RESULTS) if result.key in needed]
    if len(found) != len(needed):
        raise UserError(f"{out}: {len(needed) - len(found)} of {len(needed)} prompts are unanswered; run it again")
    return found


def without_refused(
    benchmark: Benchmark, results: list[Result], *, quiet: bool = False
) -> tuple[Benchmark, list[Result]]:
    """Both without the items whose images the model does not read, which join what was left out of the file.

    They are counted on stderr unless `quiet`; UserError where nothing is left.
    """
    refused = {result.id: result.refused for result in results if result.refused}
    if not refused:
        return benchmark, results
    described = [f"{id_}: {reason}" for id_, reason in refused.items()]
    if not quiet:
        print(f"{benchmark.name}: {len(described)} items are left out ({described[0]})", file=sys.stderr)
    items = [item for item in benchmark.items if item.id not in refused]
    if not items:
        raise UserError(f"{benchmark.name}: the model reads none of its images ({described[0]})")
    kept = replace(benchmark, items=items, skipped=[*benchmark.skipped, *described])
    return kept, [result for result in results if result.id not in refused]


def print_table(summary: dict[str, Any], out: Path) -> None:
    """Print the main metrics with intervals, blind baselines and the accuracy of free generation."""
    left_out = f", {summary['skipped']} invalid ones skipped" if summary["skipped"] else ""
    print(
        f"{summary['benchmark']}: {summary['n']} items{left_out}, {summary['groups']} groups, model {summary['model']}"
    )
    for name in _SHOWN:
        value = summary.get(name)
        if value is None:
            continue
        interval = (summary.get("ci95") or {}).get(name)
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        print(f"  {name:<22}{value:.3f}  {shown}")
    for name, found in (summary.get("witnesses") or {}).items():
        weight = "" if found["weight"] is None else f", weight {found['weight']:.3f}"
        auroc = "-" if found["auroc"] is None else f"{found['auroc']:.3f}"
        print(f"  {name.replace('_', ' ') + ' alone':<22}{found['accuracy']:.3f}  (AUROC {auroc}{weight})")
    if generate := summary.get("generate"):
        print(f"  {'generated accuracy':<22}{generate['accuracy']:.3f}  ({generate['unparsed']} unparsed)")
    for name in _EXPLAINED:
        if found := figure_at(summary.get("explanations") or {}, name):
            interval = found["ci95"]
            shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            described = name.removeprefix("measured.").replace("_", " ").replace(".", ", ")
            few = ", too few photos to say" if is_of_few(found) else ""
            print(f"  {described:<26}{found['share']:.3f}  {shown}  n {found['n']}{few}")
    baselines = ", ".join(f"{name} {value:.3f}" for name, value in summary["floors"].items())
    print(f"  blind baselines: {baselines}\n  {out / 'report.html'}")
