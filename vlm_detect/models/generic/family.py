"""Any image-text model of transformers as a `VLM`, from its processor and chat template.

The processor's tensors go to the model's own forward, one question a row, and the tower reads the image each time. That
is right for any architecture. The subclasses (`architectures.py`, `qwen.py`, `llava.py`) are for those in which an
image is read without regard to what follows, so that questions share its prefix: packed into rows in training, cached
at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from vlm_detect.images.bounds import ImageRejected
from vlm_detect.models.attention import attention_of
from vlm_detect.models.base import VLM
from vlm_detect.models.generic.loading import load_generic, make_processor
from vlm_detect.models.generic.prompts import ChatTemplate
from vlm_detect.models.rows import CAUSAL, IGNORE, PADDING, PREFIX, attention_mask

_TYPE_IDS = ("token_type_ids", "mm_token_type_ids")  # one a token; everything else that a processor gives is of images
_ORDINARY_ASPECT = 20  # of the longer side to the shorter: up to here every processor reads an image
_KEPT_LENGTHS = 10_000
_CAPTION_QUESTIONS = {
    "short": "Describe this image in a few words.",
    "normal": "Describe this image in one sentence.",
    "long": "Describe this image in detail.",
}


class ChatVLM(VLM):
    """A model behind its processor's chat template. Prepared images are one dict of tensors each."""

    reads_any_shape = False
    has_fixed_prefix = False
    supports_packing = False
    supports_prefix_cache = False
    connectors: tuple[str, ...] = ("multi_modal_projector", "connector", "merger")
    two_way_images = False  # whether the tokens of one image see each other in both directions

    @classmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[PreTrainedModel, Any]:
        options |= {"dtype": dtype or "auto"}
        return load_generic(path_or_id, revision=revision, make_processor=cls.make_processor, **options)

    @staticmethod
    def make_processor(config: Any, image_processor: Any, tokenizer: Any, stored: dict[str, Any]) -> Any:
        """The processor of an image processor and a tokenizer; `stored` is what its folder says of it."""
        return make_processor(config, image_processor, tokenizer, stored)

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        super().__init__(model, processor, name, revision)
        self.image_token_id = int(model.config.image_token_id)
        self.template = ChatTemplate(processor, self.image_token_id, name)
        self._lengths: dict[tuple[int, int], int | str] = {}

    @property
    def eos_token_id(self) -> int:
        return self.template.eos_token_id

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """The processor's tensors for each image, its text cut off behind the image.

        Raises `ImageRejected` for an image whose shape the processor refuses.
        """
        for image in images:
            if refusal := self.refusal(image.size):
                raise ImageRejected("shape", refusal)
        return [self._prepare(image) for image in images]

    def refusal(self, size: tuple[int, int]) -> str | None:
        """What the processor says to an image of a shape that is out of the ordinary; of the others it takes any."""
        if max(size) <= _ORDINARY_ASPECT * min(size):
            return None
        found = self._length(size)
        return found if isinstance(found, str) else None

    def prefix_length(self, size: tuple[int, int]) -> int:
        found = self._length(size)
        if isinstance(found, str):
            raise ImageRejected("shape", found)
        return found

    def _length(self, size: tuple[int, int]) -> int | str:
        """How many ids the prefix of an image of this size has, or why it has none; tried on an empty image."""
        if size not in self._lengths:
            if len(self._lengths) == _KEPT_LENGTHS:
                self._lengths.clear()
            try:
                self._lengths[size] = self._prepare(Image.new("RGB", size))["input_ids"].shape[1]
            except ValueError as error:  # by which processors refuse a shape
                self._lengths[size] = f"{size[0]}x{size[1]} pixels, which {self.name} cannot read: {error}"
        return self._lengths[size]

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

    @property
    def inner(self) -> Any:
        """The model without its head, which peft wraps more deeply."""
        wrapped = "base_model" in dict(self.model.named_children())
        return self.model.get_submodule("base_model.model.model" if wrapped else "model")

    @property
    def context(self) -> int:
        """The decoder's context; behind cached prefixes no further than its sliding window, whose mask is not made."""
        if not (self._slides and self.supports_prefix_cache):
            return super().context
        return min(super().context, self.model.config.get_text_config().sliding_window or super().context)

    @property
    def _slides(self) -> bool:
        """Whether some layers of the decoder see a window of the text alone."""
        return "sliding_attention" in (getattr(self.model.config.get_text_config(), "layer_types", None) or ())

    def prefix_rows(self, prepared: Any) -> list[list[int]]:
        return [image["input_ids"][0].tolist() for image in prepared]

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        """Each run of image tokens is one, for the architectures in which they see each other."""
        if not self.two_way_images:
            return super().two_way_blocks(prefix)
        runs = groupby(prefix, lambda token: token == self.image_token_id)
        return [number if is_image else CAUSAL for number, (is_image, run) in enumerate(runs) for _ in run]

    def row_inputs(self, prepared: Any, batch: dict[str, Any]) -> dict[str, Any]:
        rows = {name: batch[name].to(self.device) for name in ("ids", "image", "branch", "block", "position_ids")}
        images = self.encode([prepared[i] for i in batch["row_images"].tolist()])
        inputs = self.prefix_inputs([{k: v for k, v in image.items() if k not in _TYPE_IDS} for image in images])
        inputs["input_ids"] = rows["ids"]
        if batch["packed"]:
            return {**inputs, "attention_mask": self._masks(rows), "position_ids": self.row_positions(images, rows)}
        inputs["attention_mask"] = (rows["branch"] != PADDING).long()
        for name in set(_TYPE_IDS) & images[0].keys():
            types = torch.zeros_like(rows["ids"])
            if self.prefix_lm:
                types = (batch["labels"].to(self.device) != IGNORE).long()
            for row, image in enumerate(images):
                types[row][rows["branch"][row] == PREFIX] = image[name][0]
            inputs[name] = types
        return inputs

    def _masks(self, rows: dict[str, torch.Tensor]) -> Any:
        """The mask of packed rows; where layers differ in how far they see, one for each kind of layer."""
        config = self.model.config.get_text_config()
        mask = partial(attention_mask, rows, self.model.dtype, flex=attention_of(config) == "flex_attention")
        if not self._slides:
            return mask()
        return {"full_attention": mask(), "sliding_attention": mask(window=config.sliding_window)}

    def row_positions(self, images: list[dict[str, torch.Tensor]], rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """The positions of packed rows, in the model's own form; `images` are those of the rows, one after another."""
        return rows["position_ids"]

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


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One batch of images; crops of different counts (1, n, ...) become one long row of crops."""
    same = len({tensor.shape[1:] for tensor in tensors}) == 1
    return torch.cat(tensors, dim=0 if same else 1)
