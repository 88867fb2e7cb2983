"""recipes/cnn.py as a user runs it: trained, stopped, resumed, on other data, and given what it cannot use."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cnn.toys import save_images
from tests.scripts.here import run_here
from vlm_detect.config import REPOSITORY
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.stats.calibration import Calibration

SETTINGS = ["--arch", "mai", "--num_train_epochs", 4, "--learning_rate", "3e-3", "--per_device_train_batch_size", 16]
SETTINGS += ["--logging_steps", 1, "--cpu_threads", 1, "--report_to", "none", "--bf16", "false"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    save_images(folder / "set", n=64)
    save_images(folder / "other", seed=5)
    save_images(folder / "edits", labels=("real", "generated", "edited"), n=48)
    return folder


@pytest.fixture(autouse=True)
def _in_home(home, monkeypatch):
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(*arguments, data="set"):
    return run_here("recipes/cnn.py", *SETTINGS, "--data", data, *arguments)


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def undisturbed(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        done = train("--output_dir", "run", "--object_head", "true", "--test_data", "other", "--figures", "f.json")
    assert done.returncode == 0, done.stderr
    return home / "run", done.stdout


def test_a_run_writes_the_same_files_as_a_vlm(undisturbed):
    run, output = undisturbed
    assert "images/s" in output
    assert losses(run)[-1] < losses(run)[0]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["parameters"] == 64 * 16 * 120 + 120 + 120 * 30 + 30 + 31 * 2 + 448 + 4640 + 18496
    assert Calibration.load(run).n == 24
    for folder in ("validation", "tests/other-test"):
        summary = json.loads((run / folder / "summary.json").read_text())
        assert summary["n"] == 24
        assert set(summary["heads"]) == {"verdict", "object"}
        assert len((run / folder / "results.jsonl").read_text().splitlines()) == 24
    card = (run / "README.md").read_text()
    assert "set (validation)" in card
    assert "other (test)" in card
    assert "TODO" not in card


def test_figures_are_recorded_in_their_format(undisturbed):
    run, _ = undisturbed
    records = json.loads((run.parent / "f.json").read_text())
    assert [(record["data"], record["split"]) for record in records] == [("set", "validation"), ("other", "test")]
    for record in records:
        names = ["arch", "task", "n", "accuracy", "ci95", "seed", "command", "commit", "device", "seconds"]
        assert set(names) <= set(record)
        assert record["ci95"][0] <= record["accuracy"] <= record["ci95"][1]
        assert record["command"].startswith("recipes/cnn.py --arch mai")


def test_the_planted_mark_is_learned_and_detected(undisturbed):
    run, _ = undisturbed
    detector = CnnDetector.load(run)
    assert detector.heads == {"verdict": ["real", "generated"], "object": ["cat", "dog"]}
    assert json.loads((run / "validation" / "summary.json").read_text())["auroc"] > 0.9
    scores = detector.scores([Image.new("RGB", (32, 32), "gray")])
    assert scores.heads["object"].shape == (1, 2)


def test_a_resumed_run_equals_an_uninterrupted_one(undisturbed, home):
    run, _ = undisturbed
    stopping = """
import os, pickle, signal, sys
from transformers import TrainerCallback
import vlm_detect.cnn.trainer as t
class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 6: os.kill(os.getpid(), signal.SIGTERM)
before = t.CnnTrainer.__init__
def init(self, *args, **kwargs):
    before(self, *args, **kwargs)
    pickle.dumps(self.data_collator)  # as worker processes get it that are not forked
    self.add_callback(Stop())
"""
    scope: dict = {}
    exec(stopping, scope)
    arguments = ["--output_dir", "stopped", "--object_head", "true", "--test_data", "other", "--figures", "g.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope["t"].CnnTrainer, "__init__", scope["init"])
        stopped = train(*arguments)
    assert stopped.returncode == 130
    assert "run the same command again" in stopped.stderr
    resumed = train(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(home / "stopped") == losses(run)
    whole, parts = load_file(run / "model.safetensors"), load_file(home / "stopped" / "model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    again = train(*arguments)
    assert "nothing is left to do" in again.stdout
    other = train(*arguments, "--seed", 7)
    assert other.returncode == 1
    assert "contains a run with other settings (seed 0 -> 7)" in other.stderr


def test_a_network_that_no_longer_improves_stops_early(home):
    done = train("--learning_rate", 0, "--early_stopping_patience", 1)
    assert done.returncode == 0, done.stderr
    state = json.loads((home / "runs" / "cnn_mai" / "trainer_state.json").read_text())
    assert state["epoch"] == 2  # the second is no better than the first


@pytest.mark.parametrize("task", ["generator", "real_edited", "fake_edited", "three_way"])
def test_every_task_trains_and_is_scored(task, home):
    done = train("--task", task, "--num_train_epochs", 1, "--output_dir", task, data="edits")
    assert done.returncode == 0, done.stderr
    summary = json.loads((home / task / "validation" / "summary.json").read_text())
    assert summary["n"] == 16  # of 24 images a third is not what the verdict is about
    assert summary["heads"]["verdict"]["n"] == (24 if task == "three_way" else 16)


def test_the_same_table_takes_a_cnn_and_the_benchmark_scores_it(undisturbed, home):
    run, _ = undisturbed
    scored = run_here("eval/vqa_benchmark.py", "--model", run, "--benchmark", "set", "--split", "validation",
                      "--out", "bench")  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    own = json.loads((run / "validation" / "summary.json").read_text())
    bench = json.loads((home / "bench" / "summary.json").read_text())
    assert bench["accuracy"] == own["accuracy"]
    compared = run_here("eval/compare.py", run / "validation", "bench", "--out", "compare")
    assert compared.returncode == 0, compared.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--arch", "resnet99"], 2, "--arch resnet99: unknown; choose from mai, flux"),
        (
            ["--arch", "flux"],
            1,
            "takes images of at least 33 pixels a side, these have 32: choose from mai, flux_small",
        ),
        (["--arch", "frozen"], 2, "--arch frozen needs --weights"),
        (["--weights", "x"], 2, "--weights: mai has none to load"),
        (["--task", "real_edited"], 1, "--task real_edited needs edited and real images"),
        (["--view", "negative"], 2, "--view: negative: choose from plain, invert_saturate"),
        (["--task", "sorting"], 2, "--task: sorting: choose from real_fake"),
        (["--augment", "blur"], 2, "--augment: blur: choose from flip, rotate, shift, erase"),
        (["--image_size", 64], 1, "give a smaller --image_size, or --fit resize"),
        (["--seeds", 1, 2], 2, "--seeds: a CNN's run has one; repeat the command with --seed N"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--test_data", "other:unseen"], 1, "has no unseen split"),
        (["--test_data", "x/other", "y/other"], 2, "--test_data: other:test is given more than once"),
        (["--limit", 0], 2, "--limit 0: give 1 or more"),
    ],
)
def test_wrong_inputs_are_one_line(arguments, status, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries for a name that is no folder
    done = train("--output_dir", "bad", "--num_train_epochs", 1, *arguments)
    assert done.returncode == status  # 2: the options themselves do not allow it
    assert reason in done.stderr.splitlines()[-1]


def test_genimage_in_its_own_layout_trains_nine_sources(tmp_path, home):
    """A made folder of GenImage's shape: eight generators' {train,val}/{ai,nature}, a thousand classes of names."""
    import numpy as np

    from tests.cnn.toys import picture

    rng = np.random.default_rng(0)
    names = [
        "ADM",
        "BigGAN",
        "Midjourney",
        "VQDM",
        "glide",
        "stable_diffusion_v_1_4",
        "stable_diffusion_v_1_5",
        "wukong",
    ]
    for generator in names:
        for split, count in (("train", 6), ("val", 2)):
            for kind in ("ai", "nature"):
                folder = tmp_path / "GenImage" / generator / split / kind
                folder.mkdir(parents=True)
                for i in range(count):
                    name = f"n{i:08d}_{i}.png" if kind == "nature" else f"{i:03d}_{generator}_{i}.png"
                    label = "real" if kind == "nature" else "generated"
                    Image.fromarray(picture(label, rng, side=40 + i)).save(folder / name)
    made = run_here("data_gen/import_images.py", "--from", "genimage", tmp_path / "GenImage", "--out", home / "gen")
    assert made.returncode == 0, made.stderr
    done = train("--task", "generator", "--image_size", 32, "--num_train_epochs", 1, "--output_dir", "nine", data="gen")
    assert done.returncode == 0, done.stderr
    assert len(CnnDetector.load(home / "nine").heads["verdict"]) == 9


def test_every_config_is_read(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries for a name that is no folder
    for config in sorted((REPOSITORY / "recipes" / "configs").glob("cnn_*.yaml")):
        done = run_here("recipes/cnn.py", "--config", config, "--data", "nowhere", "--bf16", "false", "--tf32", "false")
        assert done.returncode == 1, (config, done.stderr)
        assert "nowhere" in done.stderr.splitlines()[-1]


def test_a_recipe_is_not_imported():
    assert "main" in runpy.run_path(str(REPOSITORY / "recipes" / "cnn.py"), run_name="read")


@pytest.mark.slow
def test_two_processes_share_the_steps_and_the_scoring(home):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    arguments = [*SETTINGS, "--data", "set", "--output_dir", "shared", "--use_cpu", "true", "--ddp_backend", "gloo"]
    done = subprocess.run(
        [*launcher, str(REPOSITORY / "recipes" / "cnn.py"), *map(str, arguments)],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((home / "shared" / "run.json").read_text())["processes"] == 2
    assert len(losses(home / "shared")) == 8  # 64 images in steps of twice 16, four epochs
    assert json.loads((home / "shared" / "validation" / "summary.json").read_text())["n"] == 24
