"""Two processes over gloo: the losses of one; killed and resumed with packing and cache; weights in shards (FSDP2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from safetensors.torch import load_file

from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect.config import REPOSITORY

SETTINGS = ["--learning_rate", "3e-3", "--questions_per_image", "2", "--cpu_threads", "1", "--report_to", "none"]
SETTINGS += ["--use_cpu", "True", "--num_train_epochs", "2"]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny_model(folder / "model")
    save_toy_pairs(folder / "pairs", n_train=10, n_validation=3)
    return folder


def start(home, name, *arguments, launcher=()):
    paths = ["--model", home / "model", "--data", home / "pairs", "--output_dir", home / name]
    command = [sys.executable, *launcher, REPOSITORY / "recipes" / "moondream_lora.py", *paths, *SETTINGS, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home, name, *arguments, launcher=()):
    process = start(home, name, *arguments, launcher=launcher)
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    return out


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def world_size(folder):
    return json.loads((folder / "run.json").read_text())["processes"]


def test_two_processes_give_the_losses_of_one(home):
    run(home, "one", "--per_device_train_batch_size", "2")
    run(home, "two", "--per_device_train_batch_size", "1", launcher=TWO)
    assert [world_size(home / name) for name in ("one", "two")] == [1, 2]
    assert losses(home / "two") == pytest.approx(losses(home / "one"), abs=1e-4)


def test_killed_and_resumed_with_packing_cache_views_and_two_processes(home):
    """SIGKILL to both in the second epoch; every later loss and the adapter equal the undisturbed run's, exactly."""
    flags = ["--pack_tokens", "600", "--cache_features", "True", "--augment", "flip", "--cached_views", "2"]
    flags += ["--per_device_train_batch_size", "1", "--lora_dropout", "0.1", "--num_train_epochs", "3"]
    run(home, "undisturbed", *flags, launcher=TWO)
    process = start(home, "killed", *flags, launcher=TWO)
    for line in process.stdout:
        if line.startswith("step 7/"):
            # Workers have sessions of their own, and outlive their launcher.
            for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
                one.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert json.loads((home / "killed" / "run.json").read_text())["status"] == "running"
    resumed = run(home, "killed", *flags, launcher=TWO)
    assert resumed.split("step ")[1].startswith("6/15")  # an epoch is five steps
    assert world_size(home / "killed") == 2
    assert losses(home / "killed") == losses(home / "undisturbed")
    adapters = [load_file(home / name / "adapter_model.safetensors") for name in ("killed", "undisturbed")]
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[1])


def test_fsdp2_trains_validates_and_saves_an_adapter_that_loads(home):
    sharding = json.dumps({"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True})
    flags = ["--per_device_train_batch_size", "1", "--fsdp", "--fsdp_config", sharding, "--max_steps", "2"]
    run(home, "plain", "--per_device_train_batch_size", "2", "--max_steps", "2")
    run(home, "sharded", *flags, launcher=TWO)
    assert world_size(home / "sharded") == 2
    assert losses(home / "sharded") == pytest.approx(losses(home / "plain"), abs=1e-4)
    adapters = [load_file(home / name / "adapter_model.safetensors") for name in ("sharded", "plain")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(adapters[0][name].shape == tensor.shape for name, tensor in adapters[1].items())
