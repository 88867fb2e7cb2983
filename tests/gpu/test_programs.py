"""The GPU programs run whole at small size on a CPU, so that they are ready when there is a GPU."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from vlm_detect.errors import UserError

HERE = Path(__file__).parent


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / f"{program}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=1700, env=environment)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("program", "records"),
    [
        ("scoring", 2),
        pytest.param("cnn", 1, marks=pytest.mark.slow),
        pytest.param("nano", 5, marks=pytest.mark.slow),
        pytest.param("rendering", 4, marks=pytest.mark.slow),
        pytest.param("training", 10, marks=pytest.mark.slow),
        pytest.param("training --short True", 4, marks=pytest.mark.slow),
        pytest.param("recipe", 1, marks=pytest.mark.slow),
        pytest.param("training --family tinyllava", 4, marks=pytest.mark.slow),
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


def test_the_short_set_takes_ten_minutes_at_most() -> None:
    programs = runpy.run_path(str(HERE / "all.py"))
    assert sum(programs["PROGRAMS"][name][1] for name in programs["SHORT"]) <= 600
    assert {Path(arguments[0]).stem for arguments, _ in programs["PROGRAMS"].values()} == {
        path.stem for path in HERE.glob("*.py") if path.stem not in ("all", "measuring", "test_programs")
    }


def test_processes_end_with_the_program_that_started_them(tmp_path: Path) -> None:
    """Else a training whose time is up would run on while later programs are timed."""
    status_of = runpy.run_path(str(HERE / "all.py"))["status_of"]
    mark = tmp_path / "child"
    child = f"import os, time; open({str(mark)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)"
    wait = (
        f"import os, time\nwhile not (os.path.exists({str(mark)!r}) and open({str(mark)!r}).read()): time.sleep(0.01)"
    )
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])\n{wait}"
    assert status_of([sys.executable, "-c", program], 300) == 0
    child_id, deadline = int(mark.read_text()), time.monotonic() + 60
    while _running(child_id):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status_of([sys.executable, "-c", "import time; time.sleep(600)"], 0.1) == "more than 0.1 s"


def _running(process_id: int) -> bool:
    """What has ended and nobody has waited for yet does not run."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_failed_part_does_not_end_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    parts = runpy.run_path(str(HERE / "measuring.py"))["Parts"]()
    for name in ("one", "two", "three"):
        with parts.part(name):
            if name == "two":
                raise torch.OutOfMemoryError("CUDA out of memory")
            print(name)
    out, err = capsys.readouterr()
    assert out == "one\nthree\n"
    assert "CUDA out of memory" in err
    with pytest.raises(UserError, match=r"failed, see above: two$"):
        parts.check()


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "program", ["parity", "training", "training --family tinyllava", "scoring", "rendering", "cnn", "nano"]
)
def test_small_size_on_the_gpu(program: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    name, *options = program.split()
    options += ["--folder", str(tmp_path / "runs")] if name == "nano" else []
    done = run(name, *options, "--size", "small", "--repeats", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())
