"""What a vision tower makes of an image in a few hundred numbers: features for heads on the tower (`infer.head`).

    with watched(vlm) as seen:
        embeds = vlm.encode(vlm.prepare(images))
    pool(seen, vlm.alike(embeds))           # (B, F) float32: nothing was encoded for it alone
    pooled_features(vlm, images)            # the same of images that nothing else is asked about

They are the mean and the standard deviation over an image's places of what the connector behind the tower reads and of
what it gives: F is twice the width of both. On CIFAKE with the nano weights, linear discriminant analysis of 6,000
images has 90.5 % with both and 88.1 % with either alone (2,000 held-back images).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlm_detect.errors import UserError
from vlm_detect.infer.prepared import Prepare
from vlm_detect.models.base import VLM

Seen = list[tuple[torch.Tensor, torch.Tensor]]  # what the connector read and gave, of each group of images


def connector_of(vlm: VLM) -> nn.Module | None:
    """The module between tower and language model; None where the family has none of a name that is known."""
    named = vlm.model.named_modules()
    return next((module for name, module in named if name.rpartition(".")[2] in vlm.connectors), None)


@contextmanager
def watched(vlm: VLM) -> Iterator[Seen]:
    """What passes the connector meanwhile; nothing of a model without one."""
    seen: Seen = []

    def note(_: nn.Module, arguments: tuple[Any, ...], given: Any) -> None:
        if arguments and isinstance(given, torch.Tensor):
            seen.append((arguments[0].detach(), given.detach()))

    connector = connector_of(vlm)
    hook = connector.register_forward_hook(note) if connector is not None else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def pool(seen: Seen, groups: Sequence[Sequence[int]]) -> torch.Tensor | None:
    """Features (B, F) float32 on the tower's device of B images that were read in `groups` of their indices.

    The images of a group have equally many places. None where it was not read group by group.
    """
    if len(seen) != len(groups):
        return None
    found: dict[int, torch.Tensor] = {}
    for group, passed in zip(groups, seen, strict=True):
        places = [tensor.float().reshape(len(group), -1, tensor.shape[-1]) for tensor in passed]
        found |= dict(zip(group, mean_and_deviation(places), strict=True))
    return torch.stack([found[i] for i in range(len(found))])


def mean_and_deviation(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Over the places of each of (B, N, D): (B, 2 D) of each, one behind another."""
    return torch.cat([part for one in tensors for part in (one.mean(1), one.std(1, correction=0))], dim=1)


@torch.inference_mode()
def pooled_features(
    vlm: VLM, images: Sequence[Image.Image], batch_images: int = 16, prepare: Prepare | None = None
) -> np.ndarray:
    """Features (N, F) float32 of images; `UserError` of a model whose tower cannot be watched."""
    parts = []
    for start in range(0, len(images), batch_images):
        with watched(vlm) as seen:
            embeds = vlm.encode((prepare or vlm.prepare)(images[start : start + batch_images]))
            groups = vlm.alike(embeds)
            if not vlm.has_fixed_prefix:  # the tower is part of the model's own forward
                for group in groups:
                    inputs = vlm.prefix_inputs([embeds[i] for i in group])  # type: ignore[arg-type]
                    vlm.model(**inputs, use_cache=False, logits_to_keep=1)
        found = pool(seen, groups)
        if found is None:
            raise UserError(
                f"{vlm.name}: no module between tower and language model ({' or '.join(vlm.connectors)}) is called "
                "once an image, so a head has no features of its own tower: give another vision model by --backbone ID"
            )
        parts.append(found)
    return torch.cat(parts).cpu().numpy()
