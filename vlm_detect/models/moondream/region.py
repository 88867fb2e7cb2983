"""The region head behind detect() and point(): here so that a checkpoint is read, tuned and written back whole.

Source: vikhyat/moondream `region.py`. Coordinates are Fourier features of numbers in [0, 1]; sizes are binned as
2 ** (bin / 1023 * 10 - 10).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from vlm_detect.models.moondream.configuration import MoondreamRegionConfig
from vlm_detect.models.moondream.layers import MoondreamMLP


def fourier_features(values: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """(..., d) and (d, F) to (..., 2F): cosines first, then sines."""
    angles = 2 * math.pi * values @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MoondreamRegion(nn.Module):
    def __init__(self, config: MoondreamRegionConfig) -> None:
        super().__init__()
        self.coord_features = nn.Parameter(torch.zeros(1, config.coord_feature_size // 2))
        self.size_features = nn.Parameter(torch.zeros(2, config.size_feature_size // 2))
        self.coord_encoder = nn.Linear(config.coord_feature_size, config.hidden_size)
        self.size_encoder = nn.Linear(config.size_feature_size, config.hidden_size)
        self.coord_decoder = MoondreamMLP(config.hidden_size, config.intermediate_size, config.coord_output_size)
        self.size_decoder = MoondreamMLP(config.hidden_size, config.intermediate_size, config.size_output_size)

    def encode_coordinate(self, coordinate: torch.Tensor) -> torch.Tensor:
        """A coordinate (..., 1) in [0, 1] to an embedding (..., D)."""
        return self.coord_encoder(fourier_features(coordinate, self.coord_features))

    def encode_size(self, size: torch.Tensor) -> torch.Tensor:
        """Width and height (..., 2) in [0, 1] to an embedding (..., D)."""
        return self.size_encoder(fourier_features(size, self.size_features))

    def decode_coordinate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) before the final norm to logits over 1024 positions."""
        return self.coord_decoder(hidden_states)

    def decode_size(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) before the final norm to logits (2, ..., bins) for width and height."""
        logits = self.size_decoder(hidden_states)
        return torch.stack(logits.chunk(2, dim=-1))
