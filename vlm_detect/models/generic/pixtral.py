"""The processor of Pixtral's images, which Mistral 3 and some LLaVAs have; transformers' own imports torchvision.

    processor = PixtralProcessor(image_processor, tokenizer, patch_size=14, spatial_merge_size=2)
    inputs = processor(images=[photo], text=["[IMG]What is it?"], return_tensors="pt")

Ids and pixels are those of transformers' class (`tests/models/test_pixtral_processor.py`), which has the same name and
the same settings, so that either reads a folder that the other saved. The image processor is transformers' PIL class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature, ProcessorMixin

_OF_TEXT = ("add_special_tokens", "padding", "padding_side", "truncation", "max_length")


class PixtralProcessor(ProcessorMixin):
    """An image becomes rows of image tokens: each row ends with a break, the last one with the image's end."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        *,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        """`patch_size`: of the tower, in pixels; `spatial_merge_size`: how many patches a side make one token."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        words = [image_token, image_break_token, image_end_token]
        self.image_token_ids: list[int] = tokenizer.convert_tokens_to_ids(words)
        self.image_token_id = self.image_token_ids[0]

    def __call__(self, images: Sequence[Image.Image], text: Sequence[str], **options: Any) -> BatchFeature:
        """`input_ids` and `attention_mask` (B, T), `pixel_values` (N, 3, H, W) padded to the largest image, and
        `image_sizes` (N, 2), height and width without the padding.

        Raises ValueError if the texts do not have as many places of an image as there are images.
        """
        tensors = options.pop("return_tensors", None)
        of_text = {name: options.pop(name) for name in _OF_TEXT if name in options}
        side = self.patch_size * self.spatial_merge_size
        made = self.image_processor(images=list(images), patch_size=side, return_tensors=tensors, **options)
        runs = iter([self._tokens(int(height) // side, int(width) // side) for height, width in made["image_sizes"]])
        places = sum(one.count(self.image_token) for one in text)
        if places != len(made["image_sizes"]):
            raise ValueError(f"{len(made['image_sizes'])} images for {places} places of an image in the text")
        expanded = [self._expanded(one, runs) for one in text]
        return BatchFeature({**self.tokenizer(expanded, return_tensors=tensors, **of_text), **made})

    def _tokens(self, height: int, width: int) -> str:
        """Of an image of so many tokens."""
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token

    def _expanded(self, text: str, runs: Iterator[str]) -> str:
        first, *others = text.split(self.image_token)
        return first + "".join(next(runs) + piece for piece in others)
