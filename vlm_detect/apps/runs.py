"""The training runs below a folder: what each was trained on and from, how far it is, and how good.

    for run in find_runs(Path("runs")): print(run.path, run.state, run.scores)
    write_runs_page(Path("runs.html"), "runs", find_runs(Path("runs")))

A run is a folder whose run.json has a `status`. It is running while a process holds its lock, and interrupted where it
neither runs nor is finished: the same command resumes it. Scores are those of its last validation, and of its benchmark
where `vlm-detect benchmark` has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm_detect.errors import UserError
from vlm_detect.locks import is_held
from vlm_detect.pages.page import render, write_page
from vlm_detect.printable import printable

State = Literal["finished", "running", "interrupted"]
_STATE_FILE = "trainer_state.json"  # of the Trainer, in a run and in its checkpoints
_SCORES = ("auroc", "balanced_accuracy", "accuracy")


@dataclass(frozen=True)
class TrainingRun:
    """`steps` of `max_steps` are done, as far as the run saved them; None where it has saved nothing yet.

    `scores` are of the validation split, `benchmark` of the run's own benchmark; empty where there are none.
    """

    path: str
    model: str
    data: str
    state: State
    steps: int | None
    max_steps: int | None
    epoch: float | None
    written: str
    scores: dict[str, float]
    benchmark: dict[str, float]


def find_runs(folder: Path) -> list[TrainingRun]:
    """The runs in and below `folder`, in the order of their paths.

    Raises:
        UserError: where there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that --output_dir is in")
    found = [_run(path, record) for path, record in _records(folder)]
    if not found:
        raise UserError(f"{folder}: no training run in it: none of its folders has a run.json with a status")
    return found


def table(runs: Sequence[TrainingRun]) -> str:
    """A line a run under the names of the columns."""
    head = ("run", "model", "data", "state", "steps", "AUROC", "accuracy", "benchmark AUROC")
    rows = [head, *(tuple(map(printable, _cells(run))) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def write_runs_page(out: Path, folder: str, runs: Sequence[TrainingRun]) -> None:
    """The table, and the curves of all runs over each other."""
    from vlm_detect.train.curves import overlay

    histories = {run.path: history(Path(run.path)) for run in runs}
    html = render(
        "runs.html.j2",
        title=f"Runs in {folder}",
        counts=_counts(runs),
        rows=[(run.state, _cells(run)) for run in runs],
        pictures=overlay(histories),
        without=[name for name, logged in histories.items() if not logged],
    )
    write_page(out, html)


def history(run: Path) -> list[dict[str, Any]]:
    """What the Trainer logged, up to the end or to the newest checkpoint."""
    return _trainer_state(run).get("log_history") or []


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run with its record; nothing inside of a run is another one."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        record = _read(Path(place) / "run.json") if "run.json" in files else {}
        if record.get("status"):
            folders.clear()
            yield Path(place), record


def _run(path: Path, record: Mapping[str, Any]) -> TrainingRun:
    config, trained = record.get("config") or {}, _trainer_state(path)
    finished = record["status"] == "finished"
    logged = trained.get("log_history") or []
    steps = trained.get("global_step")
    last: dict[str, Any] = next((entry for entry in reversed(logged) if "eval_auroc" in entry), {})
    scores = {name: last[f"eval_{name}"] for name in _SCORES if f"eval_{name}" in last}
    summary = _read(path / "eval" / "summary.json")
    return TrainingRun(
        path=str(path),
        model=str(record.get("model") or config.get("model") or config.get("arch") or ""),
        data=str(config.get("data") or ""),
        state="finished" if finished else "running" if is_held(path) else "interrupted",
        steps=steps,
        max_steps=trained.get("max_steps") or None,
        epoch=trained.get("epoch"),
        written=str(record.get("written") or ""),
        scores=scores,
        benchmark={name: summary[name] for name in _SCORES if isinstance(summary.get(name), float)},
    )


def _trainer_state(run: Path) -> dict[str, Any]:
    """The state at the end, or at the newest checkpoint that has one."""
    numbered = {int(path.name.rpartition("-")[2]): path for path in run.glob("checkpoint-*[0-9]") if path.is_dir()}
    for place in (run, *(path for _, path in sorted(numbered.items(), reverse=True))):
        if state := _read(place / _STATE_FILE):
            return state
    return {}


def _cells(run: TrainingRun) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    steps = "–" if run.steps is None else f"{run.steps} of {run.max_steps or '?'}"
    accuracy = run.scores.get("balanced_accuracy", run.scores.get("accuracy"))
    figures = (shown(run.scores.get("auroc")), shown(accuracy), shown(run.benchmark.get("auroc")))
    return (run.path, run.model or "–", run.data or "–", run.state, steps, *figures)


def _counts(runs: Sequence[TrainingRun]) -> str:
    states = {state: sum(run.state == state for run in runs) for state in ("finished", "running", "interrupted")}
    return ", ".join(f"{n} {state}" for state, n in states.items() if n)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing, is being written, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
