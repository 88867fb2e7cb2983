"""A CUDA device without a GPU: real numbers by the CPU's kernels, and CUDA's rules on which device a tensor is on.

    python -m tests.standin.device recipes/moondream_lora.py --model nano ...    # a program on the device

A CPU tensor next to a CUDA one raises, and what a GPU would be waited for is counted by operator (`counted`). There are
no streams, and neither bitsandbytes nor NCCL. `device.cpp` is built with the system's compiler on first use, in about
20 seconds, and has to be loaded before torch is imported.
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
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

SOURCE = Path(__file__).with_name("device.cpp")
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
MEMORY_BYTES = 80 * 10**9
CAPABILITY = (9, 0)


def build() -> Path:
    """The library, built once for each version of its source, of torch and of the compiler's flags."""
    torch = _torch_folder()
    assert COMPILER is not None
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC"]
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
    import torch

    cuda: Any = torch.cuda
    properties = SimpleNamespace(
        name="Stand-in",
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=MEMORY_BYTES,
        multi_processor_count=132,
    )
    answers = {
        "_lazy_init": None,
        "_is_compiled": True,
        "is_available": True,
        "is_initialized": True,
        "device_count": int(os.environ.get("STANDIN_DEVICES", "1")),
        "synchronize": None,
        "empty_cache": None,
        "mem_get_info": (MEMORY_BYTES, MEMORY_BYTES),
        "get_device_properties": properties,
        "get_device_capability": CAPABILITY,
        "get_device_name": properties.name,
        "get_arch_list": [f"sm_{CAPABILITY[0]}{CAPABILITY[1]}"],
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "memory_stats": {},
        # Its random numbers are the CPU's own generator's, which is seeded and saved as that.
        "manual_seed": None,
        "manual_seed_all": None,
        "current_stream": (stream := _Stream()),
        "default_stream": stream,
        "stream": contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    for module in (cuda, cuda.random):
        module.get_rng_state = lambda *_: torch.get_rng_state()
        module.get_rng_state_all = lambda: [torch.get_rng_state()]
        module.set_rng_state = module.set_rng_state_all = _always(None)
    cuda.Stream = cuda.Event = _Stream
    # Torch's compiler imports it where CUDA is available.
    vars(sys.modules["torch._C"])["_cuda_getCurrentRawStream"] = _always(0)

    class Device(contextlib.ContextDecorator):
        """`torch.cuda.device`."""

        def __init__(self, device: Any) -> None:
            self.index = _index(device)

        def __enter__(self) -> None:
            self.before = library.standin_current_device()
            if self.index is not None:
                library.standin_set_device(self.index)

        def __exit__(self, *_: Any) -> None:
            library.standin_set_device(self.before)

    cuda.device = Device
    cuda.current_device = lambda: int(library.standin_current_device())
    cuda.set_device = lambda device: library.standin_set_device(_index(device) or 0)
    torch.accelerator.empty_cache = _always(None)
    torch.accelerator.synchronize = _always(None)

    # The constructor of storages knows no CUDA in this build.
    def on_cuda(storage: Any, *_: Any, **__: Any) -> Any:
        moved = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cuda").untyped_storage()
        return moved.copy_(storage)

    def to(storage: Any, *, device: Any, non_blocking: bool = False) -> Any:
        return on_cuda(storage) if torch.device(device).type == "cuda" else plain_to(storage, device=device)

    plain_to: Any = torch.UntypedStorage.to
    storages: Any = torch.UntypedStorage
    storages.cuda, storages.to = on_cuda, to


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer


def _index(device: Any) -> int | None:
    import torch

    return device if isinstance(device, int) or device is None else torch.device(device).index


class _Stream:
    """A stream or an event: everything on this device is done when it is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _always(True)


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
