"""What a GPU has and a CPU does not, for simulations on fake tensors: the bytes that are alive, fused attention, NF4.

with FakeTensorMode(), LiveStorages() as live:
    four_bits(model, names)          # linear layers whose weights are unpacked for each use
    live.restart(); model(...); live.peak
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

NF4_BYTES = 4.127 / 8  # a weight with its scales: 4 + (8 + 32 / 256) / 64 bits


class LiveStorages(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most of them since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def now(self) -> int:
        gc.collect()
        return self.live

    def restart(self) -> None:
        self.peak = self.now()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = StorageWeakRef(storage).cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // 512) * 512
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def tensors_in(found: Any) -> Iterator[torch.Tensor]:
    """Those that an operator gave: a tensor, or lists and tuples of them."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for part in found:
            yield from tensors_in(part)


class Fused(torch.autograd.Function):
    """Attention as a fused kernel has it: query, key, value, output and one number a row are kept, a bool mask is
    widened."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.empty(mask.shape, dtype=query.dtype)
        out, sums = torch.empty_like(query), torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


class Unpacked(torch.autograd.Function):
    """A linear layer whose weight exists for the moment of each use."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: Any, shape: tuple[int, int]) -> torch.Tensor:
        ctx.shape = shape
        return nn.functional.linear(x, torch.empty(shape, dtype=x.dtype), bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype), None, None, None


class FourBits(nn.Linear):
    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        packed = torch.empty(int(layer.weight.numel() * NF4_BYTES), 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.bfloat16()
        return Unpacked.apply(x, self.weight, self.bias, (self.out_features, self.in_features))


def four_bits(model: nn.Module, names: set[str]) -> None:
    for prefix, parent in list(model.named_modules()):
        for child, layer in list(parent.named_children()):
            if (f"{prefix}.{child}" if prefix else child) in names:
                setattr(parent, child, FourBits(layer))
