"""Two runs into one place: the second says that the first holds it, and a dead one holds nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.data.factories import photo
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect import locks
from vlm_detect.errors import UserError
from vlm_detect.locks import held

HOLD = "import sys, pathlib; from vlm_detect.locks import held\nwith held(pathlib.Path(sys.argv[1])):\n"
posix = pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked or killed so there")


def holder(out: Path, then: str = "    print('held', flush=True); sys.stdin.read()") -> subprocess.Popen[str]:
    """Another process that holds `out` until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


@pytest.mark.parametrize("kind", ["folder", "file", "nothing yet", "in nothing yet"])
def test_the_second_run_reports_that_the_first_holds_the_lock(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out" if kind == "in nothing yet" else tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("rows")
    first = holder(out)
    says = rf"out is held by another run \(process {first.pid} on .*--output_dir"
    with pytest.raises(UserError, match=says), held(out, flag="--output_dir"):
        pass
    let_go(first)
    with held(out):
        pass
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []  # nothing is left


def test_all_spellings_of_a_path_are_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = holder(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    for spelled in ("out", "./out/", "out/../out"):
        with pytest.raises(UserError, match="held by another run"), held(Path(spelled)):
            pass
    with held(Path("other")):
        pass
    let_go(first)


@posix
def test_a_killed_run_releases_its_lock_even_if_its_workers_live(tmp_path: Path) -> None:
    forks = "    pid = __import__('os').fork()\n    if pid == 0: __import__('time').sleep(60)\n"
    first = holder(tmp_path / "out", forks + "    print('held', flush=True); sys.stdin.read()")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    assert list(tmp_path.glob(".*.lock"))
    with held(tmp_path / "out"):
        pass
    assert not list(tmp_path.glob(".*.lock"))


def test_a_run_may_lock_a_folder_twice_and_its_other_processes_need_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out), held(out):
        pass
    first = holder(out)
    with held(out, when=False):
        pass
    let_go(first)


def test_a_failed_run_releases_its_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "out"):
        raise KeyError
    let_go(holder(tmp_path / "out"))


def test_the_lock_is_inside_if_the_parent_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    opened, real = [], Path.open

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self.parent == tmp_path and self.suffix == ".lock":
            raise PermissionError(13, "Permission denied")
        opened.append(self.name)
        return real(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with held(out):
        assert opened == [".lock"]
    with pytest.raises(UserError, match="cannot be written"), held(tmp_path / "nothing"):
        pass


def test_a_file_system_without_locks_blocks_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", refuse)
    with held(tmp_path / "out"):
        pass


def _take_turns(out: str, log: str, barrier: threading.Barrier) -> None:
    barrier.wait()
    for _ in range(50):
        try:
            with held(Path(out)), Path(log).open("a") as file:
                file.write("(")
                file.flush()
                file.write(")")
        except UserError:
            continue


def test_two_processes_never_hold_a_lock_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=_take_turns, args=(str(tmp_path / "out"), str(tmp_path / "log"), barrier))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    written = (tmp_path / "log").read_text()
    assert written == "()" * (len(written) // 2) != ""


@pytest.mark.parametrize("verb", ["moondream", "cnn", "import"])
def test_training_and_data_generation_lock_their_folders(verb: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_toy_pairs(tmp_path / "pairs", n_train=4, n_validation=2)
    for label in ("real", "fake"):
        (tmp_path / "images" / label).mkdir(parents=True)
        photo(1).save(tmp_path / "images" / label / "a.png")
    out = str(tmp_path / "out")
    ask = {
        "moondream": ["train", "moondream", "--model", "model", "--data", "pairs", "--output_dir", out],
        "cnn": ["train", "cnn", "--arch", "fakenet2", "--data", "pairs", "--output_dir", out],
        "import": ["import-images", "--from", "folders", "images", "--out", out],
    }[verb]
    first = holder(tmp_path / "out")
    second = subprocess.run(
        [sys.executable, "-m", "vlm_detect", *ask], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (second.returncode, f"out is held by another run (process {first.pid}" in second.stderr) == (1, True)
    let_go(first)
