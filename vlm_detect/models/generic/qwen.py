"""Qwen-VL and GLM-4.6V: positions on three axes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel

from vlm_detect.models.base import VLM, family
from vlm_detect.models.generic.family import ChatVLM
from vlm_detect.models.rows import PREFIX
from vlm_detect.models.untrusted import build_untrusted


@family("glm46v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
class QwenVLM(ChatVLM):
    """An image's tokens count its rows and columns, so that the positions behind it differ from the count of tokens.

    The positions of a prefix are made when its image is prepared, on the host; the model, which makes them of tensors
    on its device, would wait for that at every token.
    """

    @cached_property
    def _without_memory(self) -> Any:
        """The model on the meta device: its rule for positions reads nothing but its configuration."""
        config = copy.deepcopy(self.model.config)
        with torch.device("meta"):
            return build_untrusted(AutoModel, config, attn_implementation="eager")

    def without_weights(self) -> VLM:
        _ = self._without_memory  # built once, for all workers
        return super().without_weights()

    def prepare_one(self, image: Image.Image) -> dict[str, Any]:
        """Also `position_ids` of the prefix, (3, 1, P), and `shift`, by which positions behind it differ."""
        made = super().prepare_one(image)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        positions, shift = self._without_memory.get_rope_index(**{name: made[name] for name in names})
        return {**made, "position_ids": positions, "shift": int(shift)}

    @property
    def joined_along(self) -> dict[str, int]:
        return {**super().joined_along, "position_ids": 1}

    def shifts(self, embeds: Any) -> list[int]:
        return [image["shift"] for image in embeds]

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Text stands on the diagonal of the three axes: (3, B, T)."""
        return positions.expand(3, *positions.shape)

    def row_positions(self, images: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> torch.Tensor:
        """(3, B, S): prefixes count an image's rows and columns, and text continues behind them."""
        positions = columns["position_ids"].expand(3, -1, -1).clone()
        counts = (columns["image"].amax(dim=1) + 1).tolist()
        places = [(row, number) for row, count in enumerate(counts) for number in range(count)]
        for image, (row, number) in zip(images, places, strict=True):
            own, behind = columns["image"][row] == number, columns["branch"][row] != PREFIX
            positions[:, row, own & ~behind] = image["position_ids"][:, 0]
            positions[:, row, own & behind] += image["shift"]
        return positions
