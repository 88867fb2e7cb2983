"""What Linux has and Windows or a Mac has not: found by reading the code, as the tests run on Linux."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_layers import MODULES
from vlm_detect import machine
from vlm_detect.apps import doctor
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.errors import UserError

POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# `serve --replicas`, which is refused on Windows.
POSIX_ALONE = {"vlm_detect.apps.front", "vlm_detect.apps.replica", "vlm_detect.apps.supervisor"}
POSIX_NAMES = {
    "os": {"fork", "forkpty", "geteuid", "getuid", "killpg", "mkfifo", "nice", "setsid", "wait", "wait3", "wait4"},
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "setitimer"},
}


def imports_in(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_on_windows(module: str):
    """A module that only Linux and macOS have is imported in a `try`."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    caught = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in node.body}
    wanted = [name for node, name in imports_in(tree) if name in POSIX_MODULES and id(node) not in caught]
    assert not wanted, f"{module} cannot be imported on Windows: {wanted}"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - POSIX_ALONE))
def test_a_module_calls_nothing_that_windows_lacks(module: str):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = [
        f"{node.value.id}.{node.attr} in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in POSIX_NAMES.get(node.value.id, ())
    ]
    assert not found, f"{module}: {found}"


def test_replicas_are_refused_on_windows(monkeypatch: pytest.MonkeyPatch):
    assert MODULES.keys() >= POSIX_ALONE
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(UserError, match="--replicas needs Unix sockets"):
        check_settings(ServerSettings(replicas=2))


def test_peak_memory_is_unknown_where_the_system_keeps_none(monkeypatch: pytest.MonkeyPatch):
    assert (machine.peak_process_bytes() or 0) > 10_000_000
    monkeypatch.setattr(machine, "resource", None)
    assert machine.peak_process_bytes() is None


def test_a_mac_computes_in_float32_on_its_gpu_and_doctor_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24_000_000_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4_000_000_000)
    device = machine.best_device()
    assert device.type == "mps"
    assert machine.default_dtype(device) == torch.float32
    assert not machine.computes_in_bfloat16("mps")
    assert machine.free_device_bytes(device) == 20_000_000_000
    assert machine.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 20 GB)"))
    lines = list(doctor.examine())
    assert any(line.startswith("GPU: MPS, 24 GB") for line in lines)
    assert not any("GPU: none" in line for line in lines)
    assert any("estimated for CUDA; the GPU here may use 24.0 GB" in line for line in lines)


def test_a_recorded_figure_names_the_cpu_and_its_vector_instructions(monkeypatch: pytest.MonkeyPatch):
    assert torch.backends.cpu.get_cpu_capability() in machine.machine_name("cpu")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\nmodel name\t: Ten Cores\nflags\t: fpu\n")
    assert f"{torch.get_num_threads()} threads, Ten Cores, " in machine.machine_name("cpu")


@pytest.mark.parametrize("path", sorted(Path(__file__).with_name("bench").glob("*.py")), ids=lambda path: path.name)
def test_no_bench_records_a_device_without_its_name(path: Path):
    bare = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "device" and isinstance(value, ast.Constant)
        if value.value in ("cpu", "cuda")
    ]
    assert not bare, f"lines {bare}: `machine_name` says which CPU it was"
