"""Which weights of a model a computation reads, found by watching its operations.

with WeightsRead(model) as watched:
    vlm.read(prepared)
watched.names            # of parameters and buffers, as in the model's state dict
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class WeightsRead(TorchDispatchMode):
    """Notes the names of weights whose memory an operation is given: views of it count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._at: dict[int, list[str]] = {}
        for name, tensor in model.state_dict().items():
            if tensor.numel():
                self._at.setdefault(_address(tensor), []).append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors([*args, *(kwargs or {}).values()]):
            self.names.update(self._at.get(_address(tensor), ()))
        return func(*args, **(kwargs or {}))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
