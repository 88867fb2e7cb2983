"""Evaluate a network on a split, in the file formats of the VLM benchmark.

    evaluate_split(shots, logits, config, out, data="data/cifake", split="validation", model="runs/cnn_fakenet2")

`results.jsonl` has one verdict per image, `summary.json` the metrics with intervals and, under "heads", the accuracy of
every head by class; `report.html` shows both. So `vlm-detect compare` can compare a CNN with a VLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.report import write_report
from vlm_detect.benchmark.results import RESULTS, ResultWriter
from vlm_detect.benchmark.summary import rounded, summarise
from vlm_detect.cnn.pixels import Shots
from vlm_detect.cnn.tasks import decisions, targets_of
from vlm_detect.config import write_json, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.verdicts import COMPARED_CLASSES, VERDICT, odds_of
from vlm_detect.questions.ask import EDIT_QUESTION, FAKE_QUESTION, NO, YES
from vlm_detect.records import Item, Result
from vlm_detect.schema import with_schema
from vlm_detect.stats.intervals import bootstrap


def evaluate_split(
    shots: Shots,
    logits: Mapping[str, np.ndarray],
    config: CnnConfig,
    out: Path,
    *,
    data: str,
    split: str,
    model: str,
) -> dict[str, Any]:
    """Write the files into `out` and return the summary. `logits` are (N, L) of each head, in the order of `shots`.

    Raises:
        UserError: if the split has no image of the verdict's classes.
    """
    name = f"{Path(data).name} ({split})"
    heads: dict[str, list[str]] = config.heads or {}
    results = verdict_results(shots, odds_of(logits[VERDICT], heads[VERDICT], config.task), config.task)
    if not results:
        raise UserError(f"{name}: none of its images is {' or '.join(COMPARED_CLASSES[config.task])}: nothing to score")
    is_fake = np.array([result.is_fake for result in results])
    summary = {
        "benchmark": name,
        "model": model,
        "task": config.task,
        "skipped": len(shots.rejects),
        **summarise(results, baselines={"commonest_class": float(max(is_fake.mean(), 1 - is_fake.mean()))}),
        "heads": rounded(head_figures(shots, logits, heads, config.task)),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).unlink(missing_ok=True)
    with ResultWriter(out) as writer:
        writer.write(results)
    write_json(out / "summary.json", with_schema("summary", summary))
    write_report(out / "report.html", summary, results, _benchmark(name, shots, results))
    write_run_json(out, {"model": model, "benchmark": data, "split": split, "by": []}, items=len(results))
    return summary


def verdict_results(shots: Shots, odds: np.ndarray, task: str) -> list[Result]:
    """One result per image of the task's verdict; `odds` (N,) of the positive class, in nats."""
    positive, other = COMPARED_CLASSES[task]
    question = EDIT_QUESTION if positive == "edited" else FAKE_QUESTION
    logprobs = np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], axis=1)  # (N, 2): of yes, of no
    results = []
    for entry, (yes, no) in zip(shots.entries, logprobs.tolist(), strict=True):
        if entry.label not in (positive, other):
            continue
        truth, said = (YES if entry.label == positive else NO), (YES if yes > no else NO)
        results.append(
            Result(
                id=entry.id,
                kind="true_false",
                scoring="logprob",
                polarity="fake",
                rotation=0,
                question=question,
                options=[YES, NO],
                ground_truth=truth,
                answer=said,
                parsed=said,
                correct=said == truth,
                p_fake=float(np.exp(yes)),
                logprobs=[yes, no],
                n_tokens=[1, 1],
                is_fake=truth == YES,
                group=entry.group,
                generator=entry.generator or entry.label,
                object_class=entry.object_class,
            )
        )
    return results


def head_figures(
    shots: Shots, logits: Mapping[str, np.ndarray], heads: Mapping[str, Sequence[str]], task: str
) -> dict[str, Any]:
    """{head: {n, accuracy, ci95, by_class}}; a head whose classes do not occur is omitted."""
    groups = shots.column("group")
    found: dict[str, Any] = {}
    for head, values in logits.items():
        try:
            truth = targets_of(shots, {VERDICT: list(heads[VERDICT]), head: list(heads[head])}, task)[head]
        except UserError:
            continue
        known = truth >= 0
        right = (decisions(values) == truth)[known].astype(float)
        interval = bootstrap(list(groups[known]), lambda w, r=right: {"accuracy": w @ r / w.sum(axis=1)})  # type: ignore[misc]
        by_class = {
            name: {"n": int((truth == place).sum()), "accuracy": float(right[truth[known] == place].mean())}
            for place, name in enumerate(heads[head])
            if (truth == place).any()
        }
        found[head] = {"n": int(known.sum()), "accuracy": float(right.mean()), "ci95": interval, "by_class": by_class}
    return found


def _benchmark(name: str, shots: Shots, results: Sequence[Result]) -> Benchmark:
    """What the report shows the images by."""
    places = {entry.id: place for place, entry in enumerate(shots.entries)}
    items = [
        Item(result.id, "true_false", (result.id,), result.question, result.ground_truth, (), {"group": result.group})
        for result in results
    ]
    return Benchmark(name, items, lambda ref: Image.fromarray(shots.images[places[ref]]), "")
