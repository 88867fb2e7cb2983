"""The product on a stand-in for a CUDA device, and a Mac's: no tensor on the wrong device, and the CPU's numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.scripts.test_distributed import assert_equal_runs
from tests.standin import device
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect.config import REPOSITORY

SCENARIOS = ["fast_paths", "scan", "recipe", "waiting", "waiting_for_scores", "without_bfloat16", "rendering"]
ON_A_MAC = ["fast_paths", "scan", "recipe", "cnn", "rendering"]
pytestmark = pytest.mark.skipif(
    device.COMPILER is None or sys.platform != "linux",
    reason="the stand-in device is built on Linux by g++ or clang++, and here is neither",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which every scenario was run."""
    return home_of(tmp_path_factory.mktemp("standin"), SCENARIOS)


@pytest.fixture(scope="module")
def home_on_a_mac(tmp_path_factory):
    return home_of(tmp_path_factory.mktemp("standin_mps"), ON_A_MAC, STANDIN="mps")


def home_of(folder, scenarios, **environment):
    save_tiny_model(folder / "model")
    save_toy_pairs(folder / "pairs", n_train=10, n_validation=3)
    run("tests/standin/scenarios.py", folder, *scenarios, **environment)
    return folder


def run(*arguments, launcher=(), **environment):
    """A program on the stand-in device."""
    command = [sys.executable, *launcher, "-m", "tests.standin.device", *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(home, scenario):
    failed = home / f"{scenario}.failed"
    assert not failed.exists(), failed.read_text()


@pytest.mark.slow  # half a minute of CPU time, and as much to build the device
@pytest.mark.parametrize("scenario", ON_A_MAC)
def test_scenario_on_a_mac(home_on_a_mac, scenario):
    failed = home_on_a_mac / f"{scenario}.failed"
    assert not failed.exists(), failed.read_text()


def test_two_processes_train_as_one(home):
    flags = ["--model", home / "model", "--data", home / "pairs", "--output_dir", home / "two", "--ddp_backend", "gloo"]
    flags += [
        "--learning_rate",
        "3e-3",
        "--questions_per_image",
        "2",
        "--num_train_epochs",
        "2",
        "--dtype",
        "float32",
        "--autocast",
        "no",
    ]
    flags += ["--per_device_train_batch_size", "1", "--report_to", "none", "--cpu_threads", "1"]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run("recipes/moondream_lora.py", *flags, launcher=launcher, STANDIN_DEVICES="2")
    assert_equal_runs(home / "two", home / "whole", 10)
