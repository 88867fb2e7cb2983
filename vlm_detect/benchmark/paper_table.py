"""Each model on each set, as published and aligned, next to what each set leaks: the implementation of `vlm-detect
paper-table`.

Figures are of the verdicts on the split's images, at the threshold 0.5: balanced accuracy, accuracy on real and on fake
images, AP, AUROC, and the generator whose images are detected least, with 95 % intervals by bootstrap over groups.
Edited images are asked about in a set that has no others besides the real ones.

"Aligned" gives all images of a set one size and one JPEG encoding (`perturb.aligned`). It removes differences of
format, size and aspect, not the traces of earlier compressions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.options import PaperTableOptions, named
from vlm_detect.benchmark.paper_formats import latex, markdown
from vlm_detect.benchmark.perturb import TIERS, Condition, aligned
from vlm_detect.benchmark.respondents import Respondent, respondent_for
from vlm_detect.benchmark.robustness import changed
from vlm_detect.benchmark.run import answer_all, check_same_run, without_refused
from vlm_detect.benchmark.score import item_image
from vlm_detect.benchmark.summary import ItemScore, figures_of, item_scores, rounded
from vlm_detect.config import write_json, write_run_json
from vlm_detect.data.audit import FAULT, Audit, audit_dataset, read_audit
from vlm_detect.errors import UserError
from vlm_detect.locks import held
from vlm_detect.machine import best_device
from vlm_detect.questions.prompts import topic_of
from vlm_detect.stats.intervals import RESAMPLES

# The table's figures, by the names that papers use.
FIGURES = {
    "balanced_accuracy": "balanced_accuracy",
    "real_accuracy": "tnr",
    "fake_accuracy": "tpr",
    "ap": "ap",
    "auroc": "auroc",
}


def paper_table(options: PaperTableOptions) -> None:
    """Write table.json, table.md and table.tex into `--out`, and print the Markdown."""
    sets, models = named(options.sets, "set"), named(options.models, "model")
    out = Path(options.out)
    state = PartialState(cpu=best_device().type == "cpu")
    with held(out, when=state.is_main_process):
        benchmarks = {name: verdict_items(Path(path), options) for name, path in sets.items()}
        sides = {name: smallest_side(benchmark, options.aligned_side) for name, benchmark in benchmarks.items()}
        rows = []
        for model_name, model in models.items():
            respondent = respondent_for(model, generate=False, batch_size=options.batch_size)
            respondent = replace(respondent, start=functools.cache(respondent.start))  # loaded once for all sets
            for set_name, benchmark in benchmarks.items():
                answers = out / "answers" / model_name / set_name
                if state.is_main_process:
                    print(f"{model_name} on {set_name}: {len(benchmark.items)} images", file=sys.stderr)
                conditions = (TIERS[0], aligned(sides[set_name]))
                found = answer_conditions(benchmark, answers, state, respondent, conditions)
                rows += [{"set": set_name, "model": model_name, **row} for row in found]
        if state.is_main_process:
            audits = {name: leaks(Path(path), options.max_images) for name, path in sets.items()}
            write_table(out, {"rows": rounded({"rows": rows})["rows"], "sets": audits}, options)
        state.wait_for_everyone()


def verdict_items(folder: Path, options: PaperTableOptions) -> Benchmark:
    """The images of one split, each asked about once: whether generated or, in a set of edits, whether altered."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a dataset made by import-images or make-pairs")
    benchmark = load_benchmark(str(folder), split=options.split)
    for topic, positive in (("generation", "generated"), ("edit", "edited")):
        items = [item for item in benchmark.items if topic_of(item) == topic][: options.limit]
        if len({item.metadata["label"] == positive for item in items}) == 2:
            return replace(benchmark, items=items)
    raise UserError(f"{folder}: its {options.split} split has images of one class only; both are needed")


def smallest_side(benchmark: Benchmark, most: int) -> int:
    """The shortest side of any image, at most `most`, in pixels: a size to which no image has to be enlarged."""
    return min(most, *(min(item_image(benchmark, item).size) for item in benchmark.items))


def answer_conditions(
    benchmark: Benchmark, out: Path, state: PartialState, respondent: Respondent, conditions: Sequence[Condition]
) -> list[dict[str, Any]]:
    """A row of the table for each condition; images that the model refuses under one are left out of all."""
    identity = {**respondent.identity, "benchmark_sha256": benchmark.sha256}
    check_same_run(out, identity, write=state.is_main_process)
    answers = [
        answer_all(benchmark, out / condition.name, state, respondent, image_of=changed(benchmark, condition))
        for condition in conditions
    ]
    refused = [result for results in answers for result in results if result.refused]
    kept = {item.id for item in without_refused(benchmark, refused, quiet=not state.is_main_process)[0].items}
    return [
        {
            "condition": condition.family if condition.family == "aligned" else condition.name,
            "side": condition.level if condition.family == "aligned" else None,
            "left_out": len(benchmark.items) - len(kept),
            **table_row([score for score in item_scores(results, "logprob") if score.id in kept]),
        }
        for condition, results in zip(conditions, answers, strict=True)
    ]


def table_row(scores: Sequence[ItemScore], resamples: int = RESAMPLES) -> dict[str, Any]:
    """The figures of one model on one set, with `ci95` by figure."""
    found = figures_of(scores, resamples=resamples)
    fakes = {score.generator for score in scores if score.is_fake}
    by_generator = {name: row for name, row in found["by_generator"].items() if name in fakes}
    worst = min(by_generator, key=lambda name: by_generator[name]["accuracy"], default=None)
    return {
        "n": found["n"],
        "groups": found["groups"],
        **{name: found[key] for name, key in FIGURES.items()},
        "worst_generator": None if worst is None else {"name": worst, **by_generator[worst]},
        "ci95": {name: found["ci95"].get(key) for name, key in FIGURES.items()},
    }


def leaks(folder: Path, max_images: int) -> dict[str, Any]:
    """The wrapping probes of a set: its saved audit, or a new one."""
    audit: Audit = read_audit(folder) or audit_dataset(folder, max_images=max_images)
    probes = [
        {"name": probe.name, "auc": probe.auc, "ci95": list(probe.ci95), "is_leak": probe.ci95[0] > FAULT}
        for probe in audit.probes
        if probe.kind == "wrapping"
    ]
    return {"probes": probes, "audited": audit.images, "total": audit.total}


def write_table(out: Path, table: Mapping[str, Any], options: PaperTableOptions) -> None:
    write_json(out / "table.json", table)
    text = markdown(table)
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "table.tex").write_text(latex(table), encoding="utf-8")
    write_run_json(out, options)
    print(text)
    print(out / "table.tex")
