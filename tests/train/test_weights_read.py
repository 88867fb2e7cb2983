"""Weights that a computation reads are seen: whole, by a view, as one of several, as a buffer; others are not."""

from __future__ import annotations

import torch
from torch import nn

from vlm_detect.train.weights_read import WeightsRead


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.unread = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.read.weight
        self.row, self.one_of_several = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(1, 2))
        self.register_buffer("scale", torch.ones(2))


def test_what_is_read_is_named() -> None:
    parts = Parts()
    with torch.inference_mode(), WeightsRead(parts) as watched:
        torch.cat([parts.read(torch.ones(1, 2)) * parts.scale, parts.one_of_several]) + parts.row[1]
    assert watched.names == {"read.weight", "tied.weight", "row", "one_of_several", "scale"}
