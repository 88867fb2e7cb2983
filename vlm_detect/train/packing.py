"""Many questions behind one image prefix, each blind to the others.

    [ image prefix ][ question 0, answer 0 ][ question 1, answer 1 ] ...

Position ids restart behind the prefix for every question, and a question sees the prefix and itself alone: hidden
states, loss and gradients are those of one row a question, and the prefix is computed once.
"""

from __future__ import annotations

import torch


def packed_positions(branch: torch.Tensor, prefix_length: int) -> torch.Tensor:
    """Position ids (B, P + L) for `branch` (B, L), in which every question starts at P."""
    batch, length = branch.shape
    index = torch.arange(length, device=branch.device).expand(batch, -1)
    starts = torch.ones_like(branch, dtype=torch.bool)
    starts[:, 1:] = branch[:, 1:] != branch[:, :-1]
    start_index = torch.where(starts, index, 0).cummax(dim=1).values
    prefix = torch.arange(prefix_length, device=branch.device).expand(batch, -1)
    return torch.cat([prefix, prefix_length + index - start_index], dim=1)


def packed_mask(branch: torch.Tensor, prefix_length: int, two_way_prefix: bool, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask (B, 1, P + L, P + L) for `branch` (B, L): 0 where a query (row) may look.

    `two_way_prefix`: the prefix's positions see each other in both directions (moondream), else only backwards.
    Padding sees itself, for a query that sees nothing has no softmax.
    """
    segment = torch.nn.functional.pad(branch, (prefix_length, 0), value=-2)  # -2: the prefix
    position = torch.arange(segment.shape[1], device=branch.device)
    backwards = position[:, None] >= position[None, :]
    same = segment[:, :, None] == segment[:, None, :]
    from_prefix, to_prefix = segment[:, :, None] == -2, segment[:, None, :] == -2
    allowed = (same & backwards) | (to_prefix & ~from_prefix & (segment[:, :, None] >= 0))
    if two_way_prefix:
        allowed |= from_prefix & to_prefix
    mask = torch.zeros(allowed.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
