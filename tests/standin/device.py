"""A GPU's device without a GPU: real numbers by the CPU's kernels, and a GPU's rules on which device a tensor is on.

    python -m tests.standin.device recipes/moondream_lora.py --model nano ...    # a program on the device
    STANDIN=mps python -m tests.standin.device ...                               # on the device of a Mac

A CPU tensor next to one of the device raises, and so does float64 on MPS; what a GPU would be waited for is counted by
operator (`counted`). There are no streams, and neither bitsandbytes nor NCCL. `device.cpp` is built with the system's
compiler on first use, in about 20 seconds, and has to be loaded before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import inspect
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.standin.pretend import pretend_cuda, pretend_mps

SOURCE = Path(__file__).with_name("device.cpp")
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
KIND = os.environ.get("STANDIN", "cuda")  # or mps


def build() -> Path:
    """The library, built once for each version of its source, of torch and of the compiler's flags."""
    torch = _torch_folder()
    assert COMPILER is not None
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", *(["-DSTANDIN_MPS"] if KIND == "mps" else [])]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    parts = [SOURCE.read_bytes(), torch.joinpath("version.py").read_bytes(), " ".join([COMPILER, *flags]).encode()]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"vlm-detect-standin-{os.getuid()}" / f"{digest}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        partial = library.with_suffix(f".{uuid4().hex}")
        include = torch / "include"
        folders = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{torch / 'lib'}"]
        command = [COMPILER, *flags, str(SOURCE), "-o", str(partial), *folders, "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True, capture_output=True)
        partial.replace(library)
    return library


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def install() -> None:
    """Load the device and have torch believe in it. Before torch is imported: its hooks are asked for once."""
    if "torch" in sys.modules:
        raise RuntimeError("the stand-in device has to be installed before torch is imported")
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    for function in (library.standin_waits, library.standin_launches, library.standin_bytes):
        function.restype = ctypes.c_char_p
        _COUNTERS.append(function)
    library.standin_on_wait(_LISTENER)
    pretend_mps() if KIND == "mps" else pretend_cuda(library)


@dataclass
class Counts:
    """Waits for the device, launches of kernels and the bytes that these read and write, by operator.

    `ours` are the waits by the function of this package that waits, or calls a function that does; `others` those
    inside a model's forward of another library, and in its training loop, by its function. Filled when the `counted`
    block ends.
    """

    waits: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    ours: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)


_COUNTERS: list[Any] = []  # the library's functions: waits, launches, bytes
_OURS: Counter[str] = Counter()
_OTHERS: Counter[str] = Counter()
_LIBRARIES = ("transformers", "peft", "accelerate")


def _note_wait() -> None:
    """Whose wait this is, by the frames of Python above it."""
    frame = inspect.currentframe()
    frame = frame and frame.f_back
    between: list[tuple[str, str]] = []
    while frame is not None:
        module, function = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        if module.split(".")[0] == "vlm_detect":
            break
        if module.split(".")[0] in _LIBRARIES:
            between.append((module, function))
        frame = frame.f_back
    is_theirs = any(function == "forward" or module == "transformers.trainer" for module, function in between)
    if frame is None or is_theirs:
        _OTHERS[".".join(between[0]) if between else "torch"] += 1
    else:
        _OURS[f"{frame.f_globals['__name__']}:{frame.f_code.co_name}"] += 1


_LISTENER = ctypes.CFUNCTYPE(None)(_note_wait)


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count within the block."""
    counts = Counts()
    _read()
    yield counts
    counts.ours, counts.others = Counter(_OURS), Counter(_OTHERS)
    counts.waits, counts.launches, counts.bytes = _read()


def _read() -> list[Counter[str]]:
    """What was counted since the last reading."""
    _OURS.clear()
    _OTHERS.clear()
    lines = [counter().decode().splitlines() for counter in _COUNTERS]
    return [Counter({name: int(times) for name, times in (line.split("\t") for line in some)}) for some in lines]


if __name__ == "__main__":
    install()
    sys.modules["tests.standin.device"] = sys.modules["__main__"]  # whose counters are those of the library
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for the program that it runs
    runpy.run_path(sys.argv[0], run_name="__main__")
