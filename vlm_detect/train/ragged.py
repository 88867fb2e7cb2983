"""Tensors of many images in one safetensors file, also where their shapes differ, each image readable by itself.

    save_file(packed(images), path)                       # images: a dict of tensors each
    with safe_open(path, framework="pt") as file:
        unpacked(file, 3)                                 # those of the image at index 3

A name whose tensors have one shape is stored as their stack. Else they are stored flat, one behind another, with their
shapes under `NAME@shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_SHAPES = "@shapes"


def packed(images: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of a file. Under one name all images have as many dimensions and the same dtype.

    They are taken out of `images`, so that no more than those of one name are in memory twice.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in list(images[0]):
        own = [image.pop(name) for image in images]
        if len({tensor.shape for tensor in own}) == 1:
            tensors[name] = torch.stack(own)
        else:
            tensors[name] = torch.cat([tensor.flatten() for tensor in own])
            tensors[name + _SHAPES] = torch.tensor([tensor.shape for tensor in own])
    return tensors


def unpacked(file: Any, index: int) -> dict[str, Any]:
    """The tensors of the image at `index` in an open file; what has no dimensions, as a number."""
    found = {}
    for name in file.keys():  # noqa: SIM118  not a dict
        if not name.endswith(_SHAPES):
            tensor = _tensor(file, name, index)
            found[name] = tensor if tensor.ndim else tensor.item()
    return found


def _tensor(file: Any, name: str, index: int) -> torch.Tensor:
    if name + _SHAPES not in file.keys():  # noqa: SIM118
        return file.get_slice(name)[index]
    shapes = file.get_tensor(name + _SHAPES)
    ends = shapes.prod(dim=1).cumsum(0).tolist()
    start = ends[index - 1] if index else 0
    return file.get_slice(name)[start : ends[index]].view(*shapes[index].tolist())
