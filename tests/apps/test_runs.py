"""The list of training runs: states, scores, and the page with their curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pages.test_page import HOSTILE, assert_self_contained
from tests.test_locks import holder, let_go
from vlm_detect.apps.runs import find_runs, table, write_runs_page
from vlm_detect.apps.runs_command import runs as command
from vlm_detect.errors import UserError


def save_run(path: Path, status: str, *, steps: int = 0, checkpoint: int | None = None, auroc: float = 0.5) -> None:
    """A run of `steps` logged steps, whose state is in a checkpoint where there is one."""
    path.mkdir(parents=True)
    record = {"status": status, "model": "nano", "config": {"data": "pairs"}, "written": "2026"}
    (path / "run.json").write_text(json.dumps(record))
    logged = [{"step": i, "epoch": i / 10, "loss": 1 / i} for i in range(1, steps + 1)]
    logged.append({"step": steps, "epoch": 1.0, "eval_auroc": auroc, "eval_balanced_accuracy": 0.25})
    state = {"global_step": steps, "max_steps": 40, "epoch": 1.0, "log_history": logged}
    place = path if checkpoint is None else path / f"checkpoint-{checkpoint}"
    place.mkdir(exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with a benchmark, an interrupted one, a dataset, and results."""
    runs = tmp_path / "runs"
    save_run(runs / "deep" / "done", "finished", steps=40, auroc=0.875)
    save_run(runs / "half", "running", steps=20, checkpoint=20)
    (runs / "half" / "checkpoint-9").mkdir()  # of an interrupted save
    (runs / "deep" / "done" / "eval").mkdir()
    (runs / "deep" / "done" / "eval" / "summary.json").write_text(json.dumps({"auroc": 0.75, "accuracy": 0.5}))
    (runs / "pairs").mkdir()
    (runs / "pairs" / "run.json").write_text(json.dumps({"rows": {"train": 3}}))
    (runs / "bad").mkdir()
    (runs / "bad" / "run.json").write_text("{")
    return runs


def test_states_steps_and_scores(folder: Path) -> None:
    done, half = find_runs(folder)
    assert (done.path, done.state, done.steps, done.max_steps) == (str(folder / "deep" / "done"), "finished", 40, 40)
    assert (done.scores["auroc"], done.benchmark["auroc"]) == (0.875, 0.75)
    assert (half.state, half.steps, half.benchmark) == ("interrupted", 20, {})
    first, *lines = table([done, half]).splitlines()
    assert first.split()[:5] == ["run", "model", "data", "state", "steps"]
    assert [line.split()[1:] for line in lines] == [
        ["nano", "pairs", "finished", "40", "of", "40", "0.875", "0.250", "0.750"],
        ["nano", "pairs", "interrupted", "20", "of", "40", "0.500", "0.250", "–"],
    ]


def test_a_run_is_running_while_its_process_lives(folder: Path) -> None:
    process = holder(folder / "half")
    assert [run.state for run in find_runs(folder)] == ["finished", "running"]
    process.kill()
    process.communicate(timeout=60)
    assert [run.state for run in find_runs(folder)] == ["finished", "interrupted"]
    let_go(holder(folder / "half"))  # asking took no lock from anyone


def test_the_page_overlays_the_curves(folder: Path) -> None:
    save_run(folder / "long", "running", steps=3000)
    save_run(folder / "new<i>", "running", steps=0)
    (folder / "new<i>" / "trainer_state.json").unlink()
    out = folder / "page" / "runs.html"
    write_runs_page(out, f"runs {HOSTILE}", find_runs(folder))
    html = out.read_text()
    assert_self_contained(html)
    assert HOSTILE not in html
    assert "Loss of 3 runs" in html
    assert "0.875 at epoch 1" in html
    assert html.count("Nothing was logged yet") == 1
    assert "new&lt;i&gt;" in html
    assert len(html) < 300_000


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command([str(folder), "--json", "--out", str(tmp_path / "page.html")])
    assert [run["state"] for run in json.loads(capsys.readouterr().out)] == ["finished", "interrupted"]
    assert (tmp_path / "page.html").is_file()
    with pytest.raises(UserError, match="no such folder"):
        command([str(tmp_path / "gone")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no training run in it"):
        command([str(tmp_path / "empty")])
