"""The hardware that a run uses: threads, device, dtype, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from pathlib import Path

import torch

from vlm_detect.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "sve_bf16")  # of torch.cpu.get_capabilities
# Of torch's compiler, which has eight: beyond them it runs a function without compiling it, with no more than a log
# line. Each kind of layer counts for each shape, and Stable Diffusion 3.5 medium has three kinds.
_RECOMPILE_LIMIT = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def use_cpu_cores(threads: int | None = None) -> None:
    """Let torch use `threads` cores, by default all of them shared by the processes of this machine.

    `accelerate launch` sets OMP_NUM_THREADS to 1 by default, which on a CPU leaves all other cores idle.
    """
    if threads is None:
        threads = cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, threads))


def prepare_training(device_type: str, threads: int | None = None, *, wants_float32: bool = False) -> None:
    """Prepare the machine for a training: use all cores, reuse freed memory when training on the CPU, and on a GPU
    multiply matrices in TF32 (10 bits of mantissa) if float32 is requested."""
    use_cpu_cores(threads)
    if device_type == "cuda" and wants_float32:
        torch.set_float32_matmul_precision("high")
    if device_type == "cpu":
        keep_freed_memory()


def cpu_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def best_device() -> torch.device:
    """The CUDA device of this process, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a tensor of the host on the device, without waiting for what a GPU still computes.

    What is not pinned is staged before CUDA's copy returns, so that the tensor may be freed.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def row_multiple(device: torch.device) -> int:
    """The number of tokens of whose multiples rows have the length: on a GPU kernels read masks of other lengths only
    after a copy, and few lengths are few shapes."""
    return 64 if device.type == "cuda" else 1


def default_dtype(device: torch.device, *, trained_in_float16: bool = False) -> torch.dtype:
    """bfloat16 on a GPU that computes in it; on an older one float16 for weights that were trained in it; else float32,
    because weights that were trained in bfloat16 overflow in float16."""
    if device.type == "cuda" and computes_in_bfloat16("cuda"):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" and trained_in_float16 else torch.float32


def computes_in_bfloat16(device_type: str) -> bool:
    """Whether the device multiplies matrices faster in bfloat16 than in float32.

    Decided by capability flags. torch also reports support on GPUs from before 2020 (T4, V100), which emulate it
    slowly, and a CPU without bfloat16 instructions takes fifty times as long as in float32.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and any(torch.cpu.get_capabilities().get(flag) for flag in _FAST_BFLOAT16)


def machine_name(device_type: str) -> str:
    """The hardware of a recorded figure: the GPU's name, or the kind of device, the threads used and the CPU."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    return f"{device_type}, {torch.get_num_threads()} threads, {cpu_name()}"


def cpu_name() -> str:
    """The CPU's model where the system names it, and the vector instructions that torch uses on it."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")  # `platform.processor` knows no model on Linux
    except OSError:
        facts = ""
    models = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    fast_bfloat16 = [name for name in _FAST_BFLOAT16 if torch.cpu.get_capabilities().get(name)]
    model = models[0] if models else platform.processor() or platform.machine()
    return ", ".join([model, torch.backends.cpu.get_cpu_capability(), *fast_bfloat16])


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch dtype of a flag's value; None for None and `auto`: the default of the device."""
    if name in (None, "auto"):
        return None
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: choose from auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def free_device_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU: free of all programs, or held by this one without use. None on a CPU."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def compile_every_shape() -> None:
    """Let torch compile the layers of a model for as many shapes as it meets; callers keep them few."""
    torch.compiler.config.recompile_limit = max(_RECOMPILE_LIMIT, torch.compiler.config.recompile_limit)


def peak_process_bytes(*, of_children: bool = False) -> int | None:
    """Peak memory so far of this process, or of the largest child that has ended; None on Windows."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the CPU's, did not suffice. MPS and the CPU say so in words alone."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "MPS backend out of memory" in text)


def has_failed(error: BaseException) -> bool:
    """Whether a GPU failed so that every later call fails too, as after an illegal memory access. What cuBLAS and cuDNN
    meet of it, they say in words alone."""
    words = ("_STATUS_EXECUTION_FAILED", "_STATUS_INTERNAL_ERROR")
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def free_memory() -> None:
    """Free the memory of models without references to them; their parts are in reference cycles."""
    gc.collect()
    empty_cache()


def empty_cache() -> None:
    """Give back the device memory that torch holds without use."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, instead of returning it and faulting it in again at the next step.

    On a CPU this trains a CNN on a third more images per second, and a moondream with large batches on a sixth more
    questions. It has no effect except on Linux with glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
