"""Qwen-VL and GLM-4.6V: positions on three axes."""

from __future__ import annotations

import torch

from vlm_detect.models.base import family
from vlm_detect.models.generic.family import ChatVLM
from vlm_detect.models.rows import PREFIX


@family("glm46v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
class QwenVLM(ChatVLM):
    """An image's tokens count its rows and columns, so that the positions behind it differ from the count of tokens."""

    supports_packing = True
    supports_prefix_cache = True

    def shifts(self, count: int) -> list[int]:
        deltas = self.inner.rope_deltas
        return [0] * count if deltas is None else [int(delta) for delta in deltas.flatten()]

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Text stands on the diagonal of the three axes: (3, B, T)."""
        return positions if self.inner.rope_deltas is None else positions.expand(3, *positions.shape)

    def row_positions(self, images: list[dict[str, torch.Tensor]], rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """(3, B, S): prefixes count an image's rows and columns, and text continues behind them."""
        positions = rows["position_ids"].expand(3, -1, -1).clone()
        counts = (rows["image"].amax(dim=1) + 1).tolist()
        places = [(row, number) for row, count in enumerate(counts) for number in range(count)]
        for image, (row, number) in zip(images, places, strict=True):
            own, behind = rows["image"][row] == number, rows["branch"][row] != PREFIX
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
            of_image, shift = self.inner.get_rope_index(**{name: image[name] for name in names})
            positions[:, row, own & ~behind] = of_image[:, 0]
            positions[:, row, own & behind] += shift[0]
        return positions
