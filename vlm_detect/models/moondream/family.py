"""moondream2 as a `VLM`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_detect.ahead import threads_for
from vlm_detect.machine import on_device
from vlm_detect.models.base import VLM, family
from vlm_detect.models.mlx import describe_moondream
from vlm_detect.models.moondream.configuration import MODEL_TYPE
from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration
from vlm_detect.models.moondream.onnx_graph import MoondreamTower, random_crops
from vlm_detect.models.moondream.processing import MoondreamProcessor
from vlm_detect.models.moondream.prompts import Reference
from vlm_detect.models.moondream.region import MoondreamRegion
from vlm_detect.models.moondream.variant import save_variant
from vlm_detect.models.onnx import OnnxTower
from vlm_detect.models.untrusted import load_untrusted


@family(MODEL_TYPE)
class MoondreamVLM(VLM):
    model: MoondreamForConditionalGeneration
    processor: MoondreamProcessor
    connectors: tuple[str, ...] = ("proj_mlp",)
    can_locate = True
    typical_crops = 10
    estimates_memory = True

    @classmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, **options: Any
    ) -> tuple[MoondreamForConditionalGeneration, MoondreamProcessor]:
        hub_options = {"revision": revision} if revision else {}
        model = load_untrusted(MoondreamForConditionalGeneration, path_or_id, **hub_options, **options)
        return model, load_untrusted(MoondreamProcessor, path_or_id, **hub_options)

    @property
    def eos_token_id(self) -> int:
        return self.processor.config.eos_token_id

    @property
    def first_only_ids(self) -> tuple[int, ...]:
        return (self.processor.config.answer_token_id,)

    @property
    def feature_grid(self) -> tuple[int, int]:
        side = math.isqrt(self.processor.config.vision_config.num_image_tokens)
        return side, side

    @classmethod
    def trained_in_float16(cls, stored: Mapping[str, Any]) -> bool:
        """False: the config.json of a release does not say which one it is."""
        return False

    @property
    def overflows_in_float16(self) -> bool:
        """True of releases in bfloat16; the earlier ones, in float16, and the nano one compute in float16."""
        return str(self.processor.config.pixel_dtype).endswith("bfloat16")

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Crops as grey levels, which the tower normalises on the device, and tilings as a list, which stays here."""
        threads = threads_for(self.device) if self.model is not None and len(images) > 1 else 0
        prepared = self.processor.image_processor(images, return_tensors="pt", do_normalize=False, threads=threads)
        return {"pixel_values": prepared["pixel_values"], "tilings": prepared["tilings"].tolist()}

    def collate(self, prepared: Sequence[Any]) -> dict[str, Any]:
        """Crops as a list: images have differently many, and none is padded."""
        return {name: [one for image in prepared for one in image[name]] for name in ("pixel_values", "tilings")}

    def encode(self, prepared: dict[str, Any]) -> torch.Tensor:
        pixel_values = prepared["pixel_values"]
        if isinstance(pixel_values, torch.Tensor):
            pixel_values = on_device(pixel_values, self.device)
        else:
            pixel_values = [on_device(crops, self.device) for crops in pixel_values]
        return self.model.encode_images(pixel_values, prepared["tilings"])

    def prefix_inputs(self, image_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        input_ids = self.prefix_tensor().expand(len(image_embeds), -1)
        return {"input_ids": input_ids, "image_embeds": image_embeds}

    @staticmethod
    def hidden_states(model: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        return model(**inputs, use_cache=False, logits_to_keep=1).last_hidden_state

    def prefix_ids(self) -> list[int]:
        config = self.processor.config
        return [config.bos_token_id, *[config.image_token_id] * config.vision_config.num_image_tokens]

    def text_prefix_ids(self) -> list[int]:
        self.processor.require_extras("questions without an image")
        return [self.processor.config.bos_token_id]

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        """The whole prefix is one."""
        return [0] * len(prefix)

    def question_ids(self, question: str, references: Sequence[Reference] = ()) -> list[int]:
        """The ids after the image prefix; `references` are places that the question is about."""
        return self.processor.query_ids(question, references)

    @property
    def region(self) -> MoondreamRegion:
        """The head that reads and writes places."""
        return self.model.region

    def caption_ids(self, length: str) -> list[int]:
        return self.processor.caption_ids(length)

    def answer_ids(self, answer: str) -> list[int]:
        return self.processor.answer_ids(answer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.processor.decode(token_ids)

    @classmethod
    def skeleton_prefixes(
        cls, model: Any, images: int, *, crops: int, dtype: torch.dtype, cached: bool
    ) -> torch.Tensor:
        vision = model.config.vision_config
        prefix = torch.empty(images, 1 + vision.num_image_tokens, model.config.text_config.hidden_size, dtype=dtype)
        if cached:
            return prefix
        pixels = torch.empty(images * crops, 3, vision.crop_size, vision.crop_size, dtype=dtype)
        # The sum keeps the graph of a tower that is trained, and nothing of one that is not.
        return prefix + model.model.vision.encode_crops(pixels).sum()

    def onnx_tower(self) -> OnnxTower:
        side = self.processor.config.vision_config.crop_size
        return OnnxTower(
            MoondreamTower(self.model.model.vision),
            random_crops(side, 2, 3),
            {"tiles": {0: "rows", 1: "columns"}},
            [random_crops(side, 1, 1), random_crops(side, 3, 1), random_crops(side, 1, 4)],
        )

    def save_official(self, out: Path) -> None:
        self.model.save_official(out)

    def save_mlx(self, out: Path) -> None:
        self.model.save_official(out)
        describe_moondream(out, self.model.config)

    def save_variant(self, out: Path) -> None:
        save_variant(self.model, out)
