"""The region head: numbers that stand in the place of tokens, for detect(), point(), gaze and grounded reasoning.

Read from a hidden state and given back to the decoder as an embedding, all in parts of the image's width and height.
Coordinates are Fourier features of a number in [0, 1], and one of 1024 even bins as output; the bins of sizes are
2 ** (bin / 1023 * 10 - 10), in the release of 2025-01-09 bin / 1024.
Source: vikhyat/moondream `region.py`, `moondream.py::_generate_points`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
        self.size_bins = config.size_bins
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

    def read_coordinate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The likeliest coordinate (...) in [0, 1), float32, of hidden states (..., D) before the final norm."""
        logits = self.decode_coordinate(hidden_states)
        return logits.argmax(-1).float() / logits.shape[-1]

    def read_size(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The likeliest width and height (..., 2), float32, of hidden states (..., D) before the final norm."""
        logits = self.decode_size(hidden_states)
        bins = logits.argmax(-1).movedim(0, -1).float()
        if self.size_bins == "linear":
            return bins / logits.shape[-1]
        return torch.exp2(bins / (logits.shape[-1] - 1) * 10 - 10)

    def put(self, embeds: torch.Tensor, coordinates: torch.Tensor | None, sizes: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings (B, T, D) with numbers in their places.

        coordinates (B, T) and sizes (B, T, 2) are NaN where a token stays; they may be shorter than the tokens.
        """
        if coordinates is not None:
            embeds = _replace(embeds, coordinates[..., None], self.encode_coordinate)
        if sizes is not None:
            embeds = _replace(embeds, sizes, self.encode_size)
        return embeds

    def decode_size(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) before the final norm to logits (2, ..., bins) for width and height."""
        logits = self.size_decoder(hidden_states)
        return torch.stack(logits.chunk(2, dim=-1))


def _replace(
    embeds: torch.Tensor, numbers: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Embeddings (B, T, D), those of the numbers (B, t <= T, n) in place of the first t where these are given."""
    numbers = nn.functional.pad(numbers, (0, 0, 0, embeds.shape[1] - numbers.shape[1]), value=math.nan)
    given = ~numbers.isnan().any(-1, keepdim=True)
    return torch.where(given, encode(numbers.nan_to_num().to(embeds.dtype)), embeds)
