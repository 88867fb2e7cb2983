"""The GPU programs run whole at small size on a CPU, so that they are ready when there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / f"{program}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


@pytest.mark.parametrize(
    ("program", "records"),
    [
        ("scoring", 2),
        pytest.param("cnn", 1, marks=pytest.mark.slow),
        pytest.param("nano", 5, marks=pytest.mark.slow),
        pytest.param("rendering", 4, marks=pytest.mark.slow),
        pytest.param("training", 10, marks=pytest.mark.slow),
        ("training --family tinyllava", 4),
        pytest.param("parity", 12, marks=pytest.mark.slow),
    ],
)
def test_small_size_on_a_cpu(program: str, records: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    name, *options = program.split()
    options += ["--folder", str(tmp_path / "runs")] if name == "nano" else []
    done = run(name, *options, "--device", "cpu", "--size", "small", "--repeats", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert len(written) == records
    assert {"command", "commit", "device", "dtype"} <= written[0].keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_line_says_so() -> None:
    done = run("scoring")
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr.splitlines()[-1]


@pytest.mark.gpu
def test_every_program_on_the_gpu(tmp_path: Path) -> None:
    done = run("all", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
