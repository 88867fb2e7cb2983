"""Programs under `accelerate launch --quiet`: a failed run ends in its one-line reason, with no traceback after it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_detect.config import REPOSITORY

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# Everything that shows a user a command.
DOCUMENTED = ["*.md", "docs/**/*.md", "examples/*.ipynb", "recipes/*.py", "eval/*.py", "data_gen/*.py"]
DOCUMENTED += ["vlm_detect/**/*.py", "vlm_detect/**/*.yaml"]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        pytest.param("recipes/moondream_lora.py", ["--no_such_flag", "1"], "--no_such_flag", marks=pytest.mark.slow),
        ("recipes/cnn.py", ["--arch", "fakenet2", "--data", "nowhere", "--use_cpu", "True"], "nowhere"),
    ],
    ids=["wrong argument", "failed run"],
)
def test_failure_ends_in_one_line(tmp_path: Path, program: str, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [*LAUNCHER, str(REPOSITORY / program), *arguments],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr  # the launcher's own status, whatever the program's is
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_documented_launch_commands_are_quiet() -> None:
    files = sorted({path for pattern in DOCUMENTED for path in REPOSITORY.glob(pattern)})
    commands = [
        (str(path.relative_to(REPOSITORY)), command)
        for path in files
        for command in re.findall(r"accelerate\s+launch\b(?!`)[^\n]*", path.read_text(encoding="utf-8"))
    ]
    assert len(commands) > 30
    assert [found for found in commands if not re.match(r"accelerate\s+launch\s+--quiet\b", found[1])] == []
