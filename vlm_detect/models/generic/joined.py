"""A Qwen-VL processor of three parts that need no torchvision: PIL image processor, tokenizer, chat template.

transformers' own `Qwen2_5_VLProcessor` holds a video processor too, which cannot be built without torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_base import BatchFeature

IMAGE_TOKEN = "<|image_pad|>"


class JoinedProcessor(ProcessorMixin):
    """Images and texts to a Qwen-VL's inputs: a text's one image token becomes as many as the image has patches."""

    def __init__(self, image_processor: Any, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.chat_template
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any:
        """As a tokenizer's; gives the text unless `tokenize` says otherwise."""
        options = {"tokenize": False, "chat_template": self.chat_template, **options}
        return self.tokenizer.apply_chat_template(conversation, **options)

    def __call__(
        self, images: Sequence[Image.Image], text: Sequence[str], return_tensors: str = "pt", **options: Any
    ) -> BatchFeature:
        """`input_ids`, `attention_mask`, `mm_token_type_ids` (B, T), `pixel_values` and `image_grid_thw` of all images.

        Raises ValueError unless the texts have one image token an image.
        """
        pictures = self.image_processor(images=list(images), return_tensors="pt")
        merged = self.image_processor.merge_size**2
        counts = [int(grid.prod()) // merged for grid in pictures["image_grid_thw"]]
        if sum(one.count(IMAGE_TOKEN) for one in text) != len(counts):
            raise ValueError(f"{len(counts)} images for other than as many {IMAGE_TOKEN} in the texts")
        upcoming = iter(counts)
        expanded = [
            "".join(part if part != IMAGE_TOKEN else IMAGE_TOKEN * next(upcoming) for part in _split(one))
            for one in text
        ]
        inputs = self.tokenizer(expanded, return_tensors=return_tensors, padding=len(text) > 1, **options)
        types = (inputs["input_ids"] == self.image_token_id).to(torch.int32)
        return BatchFeature({**inputs, "mm_token_type_ids": types, **pictures})

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        self.tokenizer.chat_template = self.chat_template
        self.tokenizer.save_pretrained(save_directory)
        self.image_processor.save_pretrained(save_directory)


def _split(text: str) -> list[str]:
    """The pieces of a text, image tokens on their own."""
    pieces = text.split(IMAGE_TOKEN)
    return [piece for part in pieces for piece in (part, IMAGE_TOKEN)][:-1]
