"""Any image-text model of transformers as a `VLM`, from its processor and chat template.

Two ways of reading images, by what an architecture allows:

    LlavaVLM   every image becomes the same number of embeddings in a causal decoder (LLaVA, TinyLLaVA): the tower reads
               an image once, embeddings can be cached, questions are packed behind them, in training too
    ChatVLM    everything else: the processor's tensors go to the model's own forward, one question a row in training;
               at inference prefixes are cached for the architectures in `CACHED`, and others take the plain path
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ...train.packing import IGNORE, PADDING, PREFIX
from ..base import VLM
from .prompts import ChatTemplate

# Architectures in which nothing behind an image changes what was read before: seen to give the plain path's answers.
CACHED = ("gemma3", "idefics3", "qwen2_vl", "qwen2_5_vl")
# The decoder reads image and question in both directions, and only the answer forwards.
PREFIX_LM = ("paligemma",)
_TYPE_IDS = ("token_type_ids", "mm_token_type_ids")  # one a token; everything else that a processor gives is of images
_TOWER_LAYER = re.compile(r"\.encoder\.layers\.(\d+)\.")
_CAPTION_QUESTIONS = {
    "short": "Describe this image in a few words.",
    "normal": "Describe this image in one sentence.",
    "long": "Describe this image in detail.",
}


class ChatVLM(VLM):
    """A model behind its processor's chat template. Prepared images are one dict of tensors each."""

    packs = False

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        super().__init__(model, processor, name, revision)
        self.model_type = model.config.model_type
        self.image_token_id = int(model.config.image_token_id)
        self.template = ChatTemplate(processor, self.image_token_id, name)
        self.caches = self.model_type in CACHED

    @property
    def eos_token_id(self) -> int:
        return self.template.eos_token_id

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """The processor's tensors for each image, its text cut off behind the image."""
        return [self._prepare(image) for image in images]

    def _prepare(self, image: Image.Image) -> dict[str, torch.Tensor]:
        inputs = self.template.inputs(image)
        inputs.pop("labels", None)  # PaliGemma's processor makes some
        length = self.template.prefix_length(inputs["input_ids"][0].tolist())
        for name in ("input_ids", "attention_mask", *_TYPE_IDS):
            if name in inputs:
                inputs[name] = inputs[name][:, :length].long()
        return inputs

    def encode(self, prepared: Any) -> Any:
        return [{name: tensor.to(self.device) for name, tensor in image.items()} for image in prepared]

    def alike(self, embeds: Any) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for i, image in enumerate(embeds):
            groups.setdefault(image["input_ids"].shape[1], []).append(i)
        return list(groups.values())

    def prefix_inputs(self, image_embeds: Any) -> dict[str, torch.Tensor]:
        return {name: _join([image[name] for image in image_embeds]) for name in image_embeds[0]}

    def shifts(self, count: int) -> list[int]:
        deltas = self._rope_deltas
        return [0] * count if deltas is None else [int(delta) for delta in deltas.flatten()]

    @property
    def _rope_deltas(self) -> torch.Tensor | None:
        """By how much the positions of a Qwen-VL, which count an image's rows and columns, differ from the count."""
        if "qwen" not in self.model_type:
            return None
        return self.model.get_submodule(self._inner).rope_deltas

    @property
    def _inner(self) -> str:
        """The name of the model without its head, which peft wraps more deeply."""
        return "base_model.model.model" if "base_model" in dict(self.model.named_children()) else "model"

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Text stands on the diagonal of a Qwen-VL's three axes: (3, B, T)."""
        return positions if self._rope_deltas is None else positions.expand(3, *positions.shape)

    @property
    def context(self) -> int:
        """The decoder's context; behind cached prefixes no further than its sliding window, whose mask is not made."""
        config = self.model.config.get_text_config()
        slides = "sliding_attention" in (config.layer_types or ()) if hasattr(config, "layer_types") else False
        return min(super().context, config.sliding_window) if slides and self.caches else super().context

    def prefix_rows(self, prepared: Any) -> list[list[int]]:
        return [image["input_ids"][0].tolist() for image in prepared]

    def unpacked_inputs(self, prepared: Any, batch: dict[str, Any]) -> dict[str, Any]:
        branch = batch["branch"].to(self.device)
        images = self.encode([prepared[i] for i in batch["row_images"].tolist()])
        inputs = self.prefix_inputs([{k: v for k, v in image.items() if k not in _TYPE_IDS} for image in images])
        inputs["input_ids"] = batch["ids"].to(self.device)
        inputs["attention_mask"] = (branch != PADDING).long()
        for name in set(_TYPE_IDS) & images[0].keys():
            types = torch.zeros_like(inputs["input_ids"])
            if self.model_type in PREFIX_LM:
                types = (batch["labels"].to(self.device) != IGNORE).long()
            for row, image in enumerate(images):
                types[row][branch[row] == PREFIX] = image[name][0]
            inputs[name] = types
        return inputs

    @cached_property
    def _prefix_ids(self) -> list[int]:
        return self._prepare(Image.new("RGB", (512, 512)))["input_ids"][0].tolist()

    def prefix_ids(self) -> list[int]:
        """Those of a square image; where the number of tokens goes by an image's shape, others have more or fewer."""
        return self._prefix_ids

    def question_ids(self, question: str) -> list[int]:
        return self.template.question_ids(question)

    def dialogue_ids(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        return self.template.dialogue_ids(history, question)

    def caption_ids(self, length: str) -> list[int]:
        return self.question_ids(_CAPTION_QUESTIONS[length])

    def answer_ids(self, answer: str) -> list[int]:
        return self.template.answer_ids(answer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(token_ids, skip_special_tokens=True))


class LlavaVLM(ChatVLM):
    """LLaVA and TinyLLaVA: a fixed number of embeddings an image, in a decoder that looks backwards only."""

    packs = True
    connector = "multi_modal_projector"

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        super().__init__(model, processor, name, revision)
        self.caches = True

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]}

    def encode(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        tower = self.model.get_submodule(self._inner)
        pixel_values = prepared["pixel_values"].to(self.device, self.model.dtype)
        return torch.stack(list(tower.get_image_features(pixel_values).pooler_output))

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
        ids = torch.tensor([self.prefix_ids()], device=self.device).expand(len(image_embeds), -1)
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.image_token_id)[..., None]
        return {"inputs_embeds": embeds.masked_scatter(places, image_embeds.to(embeds.dtype))}


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One batch of images; crops of different counts (1, n, ...) become one long row of crops."""
    same = len({tensor.shape[1:] for tensor in tensors}) == 1
    return torch.cat(tensors, dim=0 if same else 1)
