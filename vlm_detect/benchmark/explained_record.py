"""A run's explanation figures as one JSON record, and what learning to explain does to its verdicts.

    record = explanation_record(Path("runs/explained/eval"), run, without)      # eval/results/explanations/cifake.json

`without` is the same training without explanations, over the same benchmark; the yes/no accuracies are compared paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_detect.benchmark.compare import Run
from vlm_detect.benchmark.explained_rows import figure_at
from vlm_detect.benchmark.item_scores import ItemScore
from vlm_detect.benchmark.summary import figures_of, rounded
from vlm_detect.config import read_run_json
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS
from vlm_detect.stats.intervals import RESAMPLES, paired_bootstrap
from vlm_detect.stats.metrics import Array

_MEASURED = ("truth", "truth_of_another_image", "specificity", "false_faults_on_photos")
_ALSO = ("claims_an_image", "truth_above_another_image", "truth_of_constant", "recall", "unchecked_sentences")


def explanation_record(folder: Path, run: Run, without: Run, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The figures of the run in `folder`, each with {value, n, groups, ci95, command, commit, seed, device}.

    UserError where the run has no measured explanations, or where the two share no yes/no question.
    """
    explained = run.explained or {}
    measured = explained.get("measured")
    if not measured:
        raise UserError(
            f"{folder}: has no measured explanations; make them with vlm-detect benchmark --explanations N, on a "
            "dataset with measures.json"
        )
    made = _made(folder)
    figures = {name: _figure(measured[name]) for name in (*_MEASURED, *_ALSO)}
    figures["contradictions"] = _figure(explained["contradictions"])
    further = {f"{name}_of_base": f"base.measured.{name}" for name in ("claims_an_image", "truth", "specificity")}
    further |= {"hiding": "faithfulness.hiding", "pasting": "faithfulness.pasting"}
    figures |= {name: _figure(found) for name, path in further.items() if (found := figure_at(explained, path))}
    figures |= yes_no_figures(run, without, resamples=resamples)
    return rounded({"data": made.pop("data"), **{name: {**figure, **made} for name, figure in figures.items()}})


def yes_no_figures(run: Run, without: Run, *, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """Both accuracies over the yes/no questions about generation that both answered, and their paired difference."""
    shared = [id_ for id_, score in run.scores.items() if id_ in without.scores and _is_yes_no(score)]
    if not shared:
        raise UserError(f"{run.name} and {without.name} share no yes/no question: score both over the same benchmark")
    sides = [[one.scores[id_] for id_ in shared] for one in (run, without)]
    first, second = (figures_of(scores, resamples=resamples) for scores in sides)
    right = [np.array([score.correct for score in scores], float) for scores in sides]
    groups = [score.group for score in sides[0]]
    interval, p = paired_bootstrap(groups, _accuracy(right[1]), _accuracy(right[0]), resamples=resamples)["accuracy"]
    return {
        "yes_no_accuracy": {
            "value": first["accuracy"],
            "n": len(shared),
            "ci95": first["ci95"]["accuracy"],
            "difference": float(right[0].mean() - right[1].mean()),
            "difference_ci95": interval,
            "difference_p": p,
        },
        "yes_no_accuracy_without": {
            "value": second["accuracy"],
            "n": len(shared),
            "ci95": second["ci95"]["accuracy"],
            "model": without.name,
        },
    }


def _is_yes_no(score: ItemScore) -> bool:
    return score.topic == "generation" and KINDS[score.kind].is_verdict


def _accuracy(right: Array) -> Any:
    return lambda weights: {"accuracy": weights @ right / weights.sum(axis=1)}


def _figure(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """A figure of a summary; without any claim it has no value."""
    if not found:
        return {"value": None, "n": 0, "groups": 0, "ci95": None}
    return {"value": found["share"], **{name: found.get(name) for name in ("n", "groups", "ci95")}}


def _made(folder: Path) -> dict[str, Any]:
    """By what the figures in `folder` were made."""
    record = read_run_json(folder) or {}
    config = record.get("config") or {}
    command: Sequence[str] = record.get("command") or []
    return {
        "data": f"{config.get('benchmark')} ({config.get('split')})",
        "command": " ".join(command),
        "commit": record.get("commit"),
        "seed": config.get("seed"),
        "device": record.get("device"),
    }
