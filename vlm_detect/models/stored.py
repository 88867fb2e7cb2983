"""Tensors of a checkpoint that are read when they are needed, each on its own, under whatever names a model gives them.

transformers takes a dict of these as `state_dict`: it indexes every tensor once, as it does with safetensors' slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class LazyTensor(Protocol):
    """What a checkpoint's tensor has to offer; a torch tensor does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, index: Any) -> torch.Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file."""

    handle: Any
    name: str
    transposed: bool
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self.handle.get_tensor(self.name)
        return (tensor.T.contiguous() if self.transposed else tensor)[index]


def fetch(path_or_id: str | Path, patterns: list[str], **hub_options: Any) -> Path:
    """A folder as it is, or the files of a Hub repository that fit `patterns`, fetched where they are not cached."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    return Path(snapshot_download(str(path_or_id), allow_patterns=patterns, **hub_options))


def find_weights(path_or_id: str | Path, **hub_options: Any) -> list[Path]:
    """The safetensors files of a folder, or of a Hub repository, which are fetched first where they are not cached."""
    folder = fetch(path_or_id, ["config.json", "model*.safetensors"], **hub_options)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{path_or_id}: no model*.safetensors (other formats can run code and are not read)")
    return files


def read_safetensors(file: Path, dtype: torch.dtype | None = None) -> Iterator[tuple[str, tuple[int, ...], str, Any]]:
    """(name, shape, stored dtype, handle) of every tensor in a file, none of them read yet.

    Where the dtype stays, tensors are views of the memory-mapped file. A cast to `dtype` reads each tensor on its own
    instead: touched pages of a mapping count as memory next to the cast copy until the file is closed.
    """
    try:
        handle = safe_open(file, framework="pt", backend="mmap")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  not a dict
        stored = {DTYPES.get(part.get_dtype()) for part in slices.values()}
        if dtype is not None and stored != {dtype}:
            handle = safe_open(file, framework="pt", backend="pread")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged, download it again: {error}") from error
    for name, part in slices.items():
        yield name, tuple(part.get_shape()), part.get_dtype(), handle


def dtype_of(stored: str, name: str) -> torch.dtype:
    """The torch dtype of a safetensors one; ValueError for those that hold no weights."""
    if stored not in DTYPES:
        raise ValueError(f"{name} is stored as {stored}; {', '.join(DTYPES)} can be read")
    return DTYPES[stored]


def stored_dtype(tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """The dtype of most of a checkpoint's elements."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    return max(counts, key=lambda dtype: counts[dtype])


def check_tensors(tensors: Mapping[str, LazyTensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raise ValueError naming the tensors that a checkpoint has too few, too many, or in another shape."""
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"the checkpoint lacks {_some(missing)}")
    if surplus := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(f"the checkpoint has the unknown {_some(surplus)}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(wanted[name]):
            raise ValueError(
                f"the checkpoint's {name} is {list(tensor.shape)} where the configuration says {list(wanted[name])}"
            )


def _some(names: list[str], shown: int = 3) -> str:
    noun = "tensor" if len(names) == 1 else "tensors"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{noun} {', '.join(names[:shown])}{more}"
