"""recipes/vlm_lora.py as a user runs it, on a tiny Qwen2.5-VL: trained, run again, asked, measured."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.models.tiny_chat import save_tiny
from tests.scripts.here import run_here
from tests.train.toys import save_toy_pairs, toy_image
from vlm_detect import Detector

SETTINGS = ["--use_cpu", "True", "--cpu_threads", "1", "--report_to", "none", "--num_train_epochs", "3"]
SETTINGS += ["--per_device_train_batch_size", "2", "--learning_rate", "3e-3", "--lora_targets", "all-linear+vision"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    save_tiny("qwen2_5_vl", folder / "model")
    save_toy_pairs(folder / "pairs", n_train=4, n_validation=2)
    return folder


def test_a_run_is_trained_queried_and_evaluated(home) -> None:
    import numpy as np

    run = home / "run"
    arguments = ["--model", home / "model", "--data", home / "pairs", "--output_dir", run, *SETTINGS]
    done = run_here("recipes/vlm_lora.py", *arguments)
    assert done.returncode == 0, done.stderr
    losses = [e["loss"] for e in json.loads((run / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert losses[-1] < losses[0]
    assert done.stdout.count("validation after epoch") == 3
    again = run_here("recipes/vlm_lora.py", *arguments)
    assert "nothing is left to do" in again.stdout
    verdict = Detector(str(run), device="cpu")(toy_image(True, np.random.default_rng(0)))
    assert verdict.calibrated
    assert isinstance(verdict.ask("What is it?", 4), str)
    measured = run_here("eval/vqa_benchmark.py", "--model", run, "--benchmark", home / "pairs", "--out", home / "eval")
    assert measured.returncode == 0, measured.stderr
    assert json.loads((home / "eval" / "summary.json").read_text())["n"] > 0


def test_wrong_inputs_are_one_line(home) -> None:
    nothing = run_here("recipes/vlm_lora.py", "--data", home / "pairs", *SETTINGS)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "--model is missing" in nothing.stderr
    shutil.copytree(home / "model", home / "mute")
    (home / "mute" / "chat_template.jinja").write_text("{{ 'A prompt without the question.' }}")
    arguments = ["--model", home / "mute", "--data", home / "pairs", "--output_dir", home / "bad", *SETTINGS]
    mute = run_here("recipes/vlm_lora.py", *arguments)
    assert mute.returncode == 1
    assert "drops the user's text" in mute.stderr
