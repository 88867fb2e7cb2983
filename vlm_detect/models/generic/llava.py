"""LLaVA and TinyLLaVA as a `VLM`: the tower reads an image once, and its embeddings can be cached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from vlm_detect.machine import on_device
from vlm_detect.models.base import VLM, family
from vlm_detect.models.generic.family import ChatVLM
from vlm_detect.models.generic.levels import RAW
from vlm_detect.models.mlx import check_llava, rewrite_llava
from vlm_detect.models.onnx import OnnxTower

SYSTEM_TOKENS = 40  # of a prompt before its image, where nothing is known of the template
_TOWER_LAYER = re.compile(r"\.encoder\.layers\.(\d+)\.")


class LlavaTower(nn.Module):
    """Normalised pixels (1, 3, H, W) to image embeddings, as `LlavaVLM.encode`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(self.inner.get_image_features(pixel_values).pooler_output))


@family("llava")
class LlavaVLM(ChatVLM):
    """LLaVA and TinyLLaVA: a fixed number of embeddings an image, in a decoder that looks backwards only."""

    reads_any_shape = True
    has_fixed_prefix = True
    supports_packing = True
    supports_prefix_cache = True
    two_way_images = False
    connector = "multi_modal_projector"
    estimates_memory = True

    # All images have one prefix, so their embeddings are one tensor.
    read, join, read_by, features_refusal = VLM.read, VLM.join, VLM.read_by, VLM.features_refusal

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        settings = RAW if self.levels else {}
        made = self.processor.image_processor(list(images), return_tensors="pt", **settings)
        return self._as_sent({"pixel_values": made["pixel_values"]})

    def _pixels(self, image: Image.Image, settings: dict[str, bool]) -> dict[str, torch.Tensor]:
        made = self.processor.image_processor([image], return_tensors="pt", **settings)
        return {"pixel_values": made["pixel_values"]}

    def collate(self, prepared: Sequence[Any]) -> dict[str, torch.Tensor]:
        return VLM.collate(self, prepared)

    def refusal(self, size: tuple[int, int]) -> str | None:
        return None

    def prefix_length(self, size: tuple[int, int]) -> int:
        return len(self.prefix_ids())

    def encode(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        sent = {"pixel_values": on_device(prepared["pixel_values"], self.device)}
        pixel_values = self._normalized(sent)["pixel_values"].to(self.model.dtype)
        return torch.stack(list(self.inner.get_image_features(pixel_values).pooler_output))

    def onnx_tower(self) -> OnnxTower:
        """Of one image: transformers splits a batch into its images, whose number is then part of the graph."""
        generator = torch.Generator().manual_seed(0)
        shape = self.prepare([Image.new("RGB", (64, 64))])["pixel_values"].shape
        examples = [{"pixel_values": torch.randn(shape, generator=generator)} for _ in range(3)]
        return OnnxTower(LlavaTower(self.inner), examples[0], {}, examples[1:])

    def save_mlx(self, out: Path) -> None:
        check_llava(self.model.config, self.name)
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)
        rewrite_llava(out, self.model.config)

    def is_unused(self, name: str) -> bool:
        """The features are those of an earlier layer of the tower: the layers above, and its head, are never read."""
        if ".vision_tower." not in name:
            return False
        layer, config = self.model.config.vision_feature_layer, self.model.config.vision_config
        if not isinstance(layer, int):
            return False
        used = layer + 1 + config.num_hidden_layers if layer < 0 else layer
        found = _TOWER_LAYER.search(name)
        return found is None or int(found[1]) >= used

    def alike(self, embeds: Any) -> list[list[int]]:
        return [list(range(len(embeds)))]

    def prefix_inputs(self, image_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = self.prefix_tensor().expand(len(image_embeds), -1)
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.image_token_id)[..., None]
        return {"inputs_embeds": embeds.masked_scatter(places, image_embeds.to(embeds.dtype))}

    @classmethod
    def skeleton_prefixes(
        cls, model: Any, images: int, *, crops: int, dtype: torch.dtype, cached: bool
    ) -> torch.Tensor:
        width = model.config.text_config.hidden_size
        features = torch.empty(images, model.config.image_seq_length, width, dtype=dtype)
        if not cached:
            side = model.config.vision_config.image_size
            pixels = torch.empty(images, 3, side, side, dtype=dtype)
            features = torch.stack(list(model.model.get_image_features(pixels).pooler_output)).to(dtype)
        return torch.cat([torch.empty(images, SYSTEM_TOKENS, width, dtype=dtype), features], dim=1)
