"""Torch made to believe in the stand-in device: what its Python modules answer about it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from types import SimpleNamespace
from typing import Any

MEMORY_BYTES = 80 * 10**9
CAPABILITY = (9, 0)


def pretend_cuda(library: ctypes.CDLL) -> None:
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
    _move_storages("cuda")


def pretend_mps() -> None:
    import torch

    vars(sys.modules["torch._C"])["_has_mps"] = True
    backend: Any = torch.backends.mps
    backend.is_built = backend.is_available = backend.is_macos_or_newer = _always(True)
    mps: Any = torch.mps
    answers = {
        "is_available": True,
        "device_count": 1,
        "synchronize": None,
        "empty_cache": None,
        "recommended_max_memory": MEMORY_BYTES,
        "driver_allocated_memory": 0,
        "current_allocated_memory": 0,
        # Its random numbers are the CPU's own generator's, which is seeded and saved as that.
        "manual_seed": None,
        "seed": None,
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(mps, name, _always(answer))
    mps.get_rng_state = lambda *_: torch.get_rng_state()
    torch.accelerator.empty_cache = _always(None)
    torch.accelerator.synchronize = _always(None)
    _move_storages("mps")


def _move_storages(kind: str) -> None:
    """The constructor of storages knows no such device in this build."""
    import torch

    def on_device(storage: Any, *_: Any, **__: Any) -> Any:
        moved = torch.empty(storage.nbytes(), dtype=torch.uint8, device=kind).untyped_storage()
        return moved.copy_(storage)

    def to(storage: Any, *, device: Any, non_blocking: bool = False) -> Any:
        return on_device(storage) if torch.device(device).type == kind else plain_to(storage, device=device)

    storages: Any = torch.UntypedStorage
    plain_to = storages.to
    storages.to = to
    setattr(storages, kind, on_device)


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
