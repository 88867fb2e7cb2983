"""recipes/preference_lora.py as a user runs it: on a base, on a run of a recipe, stopped and resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.scripts.here import run_here
from tests.train.reasoned import reasoned_images
from vlm_detect import Detector
from vlm_detect.models.registry import adapter_base

pytest.importorskip("trl", reason="needs the extra preference")

PROGRAM = "recipes/preference_lora.py"
SETTINGS = ["--use_cpu", "True", "--cpu_threads", "1", "--report_to", "none", "--per_device_train_batch_size", "8"]
SETTINGS += ["--learning_rate", "5e-4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with reasons, and a run of a recipe on it."""
    folder = tmp_path_factory.mktemp("home")
    rows, calibration = reasoned_images()
    (folder / "data" / "data").mkdir(parents=True)
    for split, some in (("train", range(48)), ("validation", range(48, 80))):
        rows.select(some).to_parquet(folder / "data" / "data" / f"{split}-00000-of-00001.parquet")
    calibration.save(folder / "data")
    arguments = ["--model", "nano", "--data", folder / "data", "--output_dir", folder / "base", *SETTINGS]
    done = run_here("recipes/moondream_lora.py", *arguments, "--question_kinds", "yes_no", "explain", "--max_steps", 4)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_continues_with_preference_tuning(home: Path) -> None:
    run = home / "run"
    arguments = ["--model", home / "base", "--data", home / "data", "--output_dir", run, *SETTINGS]
    done = run_here(PROGRAM, *arguments, "--num_train_epochs", 3)
    assert done.returncode == 0, done.stderr
    assert "new PAD/BOS/EOS tokens" not in done.stderr
    assert f"continuing the LoRA of {home / 'base'}" in done.stdout
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["validation"].keys() >= {"preferred", "margin", "auroc"}
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    held_out = [entry["eval_rewards/margins"] for entry in history if "eval_rewards/margins" in entry]
    assert len(held_out) == 3
    assert min(held_out) > 0.1
    assert adapter_base(run) == adapter_base(home / "base") == "nano"
    assert {"calibration.json", "measures.json", "preferences.parquet", "README.md", "training.html"} <= {
        path.name for path in run.iterdir()
    }
    made = pq.read_table(run / "preferences.parquet").to_pylist()
    card = (run / "README.md").read_text()
    assert f"{len(made)} preferences" in card
    assert all(f"| {one['fault']} |" in card for one in made)
    again = run_here(PROGRAM, *arguments, "--num_train_epochs", 3)
    assert (again.returncode, "nothing is left to do" in again.stdout) == (0, True)
    photo = reasoned_images()[0][0]["image"]
    assert Detector(str(run), device="cpu")(photo).explain(12)


@pytest.mark.slow  # tests/train/test_preference_trainer.py resumes in one process
def test_a_resumed_run_equals_an_uninterrupted_one(home: Path) -> None:
    common = ["--model", "nano", "--data", home / "data", *SETTINGS, "--save_strategy", "steps", "--save_steps", 2]
    common += ["--eval_strategy", "steps", "--eval_steps", 2, "--lr_scheduler_type", "constant", "--max_steps", 4]
    whole = run_here(PROGRAM, *common, "--output_dir", home / "whole")
    assert whole.returncode == 0, whole.stderr
    # As a run looks that was killed behind its first checkpoint.
    run = home / "killed"
    (home / "whole").rename(run)
    expected = json.loads((run / "trainer_state.json").read_text())["log_history"]
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    shutil.rmtree(run / "checkpoint-4")
    done = run_here(PROGRAM, *common, "--output_dir", run)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "trainer_state.json").read_text())["log_history"]

    def margins(history: list[dict[str, float]]) -> dict[float, float]:
        return {entry["step"]: entry["rewards/margins"] for entry in history if "rewards/margins" in entry}

    assert margins(found) == pytest.approx(margins(expected), abs=1e-6)


def test_wrong_inputs_are_one_line(home: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "data"
    bare.mkdir(parents=True)
    rows = reasoned_images()[0].remove_columns("reasons")
    for split in ("train", "validation"):
        rows.select(range(8)).to_parquet(bare / f"{split}-00000-of-00001.parquet")
    for arguments, status, message in (
        (["--data", bare.parent], 1, "has no column reasons: add reasons with"),
        (["--data", home / "data", "--faults", "typos"], 2, "choose from wrong_place"),
        (["--data", home / "data", "--tune", "full"], 2, "needs a LoRA"),
        ([], 2, "--data"),
    ):
        done = run_here(PROGRAM, "--model", "nano", "--output_dir", tmp_path / "run", *SETTINGS, *arguments)
        assert (done.returncode, message in done.stderr) == (status, True), done.stderr
        assert done.stderr.strip().count("\n") == 0, done.stderr
    assert not (tmp_path / "run").exists()  # said before a model is loaded
