"""`--compile`: a denoiser whose blocks are compiled, and the shapes that it meets.

    shapes = compile_blocks(pipeline.transformer, dynamic=False)
    ...
    len(shapes)

Blocks and not the whole are compiled, because those of one kind share their kernels. Compiling takes long for each
shape, so callers keep shapes few; how many they were is counted, as the only way to notice that they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlm_detect.errors import UserError
from vlm_detect.machine import compile_every_shape


def compile_blocks(
    denoiser: nn.Module, *, dynamic: bool | None, backend: str | Callable[..., Any] = "inductor"
) -> set[Any]:
    """Compile what the denoiser's lists of modules hold; returns the set of its input shapes, which calls fill.

    Args:
        dynamic: False: kernels for each shape, which do not depend on the shapes before it; None: kernels for any
            shape after the first one.

    Raises:
        UserError: for a denoiser without such lists.
    """
    blocks = [block for part in denoiser.children() if isinstance(part, nn.ModuleList) for block in part]
    if not blocks:
        raise UserError(f"--compile: {type(denoiser).__name__} has no repeated blocks to compile; omit it")
    compile_every_shape()
    for block in blocks:
        block.compile(dynamic=dynamic, backend=backend)
    shapes: set[Any] = set()

    def note(denoiser: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        shapes.add(_shapes_of((*arguments, *named.values())))

    denoiser.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def _shapes_of(value: Any) -> Any:
    """The shapes of the tensors in nested lists."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return tuple(map(_shapes_of, value)) if isinstance(value, list | tuple) else None
