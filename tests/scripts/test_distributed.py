"""Two processes over gloo: the losses of one; killed and resumed with packing and cache; weights in shards (FSDP2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.train.toys import save_tiny_model, save_toy_pairs, toy_images
from vlm_detect.config import REPOSITORY

SETTINGS = ["--learning_rate", "3e-3", "--questions_per_image", "2", "--cpu_threads", "1", "--report_to", "none"]
SETTINGS += ["--use_cpu", "True", "--num_train_epochs", "2"]
SEVEN = ["--validation", "seven", "--per_device_eval_batch_size", "3"]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
STOPPED, FSDP_ON_CPU = (REPOSITORY / "tests" / "scripts" / f"{name}.py" for name in ("stopped", "fsdp_on_cpu"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_model(folder / "model")
    save_toy_pairs(folder / "pairs", n_train=10, n_validation=3)
    (folder / "seven" / "data").mkdir(parents=True)
    seven = toy_images(["real"] * 4 + ["generated"] * 3)
    seven.to_parquet(folder / "seven" / "data" / "validation-00000-of-00001.parquet")
    return folder


def run(home, name, *arguments, launcher=(), status=0):
    paths = ["--model", home / "model", "--data", home / "pairs", "--output_dir", home / name]
    command = [sys.executable, *launcher, REPOSITORY / "recipes" / "moondream_lora.py", *paths, *SETTINGS, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def world_size(folder):
    return json.loads((folder / "run.json").read_text())["processes"]


@pytest.fixture(scope="module")
def one(home):
    """What two processes have to equal; of the seven images, three at a time, one of them scores a batch more."""
    run(home, "one", *SEVEN, "--per_device_train_batch_size", "2")
    assert world_size(home / "one") == 1
    return home / "one"


def assert_equal_runs(run, other, steps):
    assert world_size(run) == 2
    assert len(losses(run)) == steps
    assert losses(run) == pytest.approx(losses(other), abs=1e-4)
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (run, other)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, tensor in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], tensor, atol=1e-3, rtol=0, msg=name)
    scores = [json.loads((folder / "run.json").read_text())["validation"]["log_loss"] for folder in (run, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_two_processes_give_the_losses_of_one(home, one):
    run(home, "two", *SEVEN, "--per_device_train_batch_size", "1", launcher=TWO)
    assert_equal_runs(home / "two", one, 10)


@pytest.mark.slow  # four processes after each other, each of which imports everything
def test_resumed_equals_uninterrupted_with_packing_cache_views_and_two_processes(home):
    """SIGKILL to both in the second epoch; every later loss and the adapter equal the undisturbed run's, exactly."""
    flags = ["--pack_tokens", "600", "--cache_features", "True", "--augment", "flip", "--cached_views", "2"]
    flags += ["--per_device_train_batch_size", "1", "--lora_dropout", "0.1", "--num_train_epochs", "3"]
    run(home, "undisturbed", *flags, launcher=TWO)
    run(home, "killed", *flags, launcher=(*TWO, STOPPED, "SIGKILL", "7", "0,1"), status=1)
    assert json.loads((home / "killed" / "run.json").read_text())["status"] == "running"
    resumed = run(home, "killed", *flags, launcher=TWO)
    assert resumed.split("step ")[1].startswith("6/15")  # an epoch is five steps
    assert world_size(home / "killed") == 2
    assert losses(home / "killed") == losses(home / "undisturbed")
    adapters = [load_file(home / name / "adapter_model.safetensors") for name in ("killed", "undisturbed")]
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[1])


@pytest.mark.slow
def test_a_termination_seen_by_one_process_stops_both_after_the_same_step(home):
    flags = ["--per_device_train_batch_size", "1"]
    run(home, "terminated", *flags, launcher=(*TWO, STOPPED, "SIGTERM", "7", "1"), status=1)
    saved = home / "terminated" / "checkpoint-8"
    assert {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in saved.iterdir()}


@pytest.mark.slow
def test_fsdp2_trains_validates_saves_and_resumes(home, one):
    sharding = json.dumps({"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True})
    flags = [*SEVEN, "--per_device_train_batch_size", "1", "--fsdp", "--fsdp_config", sharding]
    run(home, "sharded", *flags, launcher=(*TWO, STOPPED, "SIGKILL", "7", "0,1", FSDP_ON_CPU), status=1)
    resumed = run(home, "sharded", *flags, launcher=(*TWO, FSDP_ON_CPU))
    assert resumed.split("step ")[1].startswith("6/10")
    assert_equal_runs(home / "sharded", one, 10)
