"""Images and questions to model inputs, with the prompts of the official query() and caption().

    processor(images=[photo], text=["Is this image AI-generated?"], return_tensors="pt")
    processor(images=[photo], prompt_ids=[[1, 15381, 2, ...]], return_tensors="pt")     # without a tokenizer

Each row becomes `[BOS][image placeholders][prompt]`; without images `[BOS][prompt]`. Rows are padded on the left, as
generation needs it (`padding_side="right"` for training).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessorMixin

from vlm_detect.models.moondream.chat import ChatWords
from vlm_detect.models.moondream.configuration import MoondreamConfig
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor
from vlm_detect.models.moondream.prompts import MoondreamPrompts
from vlm_detect.models.prompt import numbers_of, stack_numbers
from vlm_detect.models.untrusted import load_untrusted


class MoondreamProcessor(MoondreamPrompts, ProcessorMixin):
    """The image processor, the tokenizer (optional) and the prompt templates of one checkpoint."""

    model_input_names = ["input_ids", "attention_mask", "pixel_values", "tilings"]  # noqa: RUF012

    def __init__(
        self,
        config: MoondreamConfig,
        image_processor: MoondreamImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        # Not the mixin's own: it takes no configuration, and no processor without a tokenizer.
        vision = config.vision_config
        self.config = config
        self.image_processor = image_processor or MoondreamImageProcessor(
            crop_size=vision.crop_size,
            patch_size=vision.patch_size,
            max_crops=vision.max_crops,
            overlap_margin=vision.overlap_margin,
            pixel_dtype=config.pixel_dtype,
        )
        self._tokenizer = tokenizer
        self._out_of_reach = False
        self._chat_template: str | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, fetched at first use where it lies in a Hub repository of its own; None where out of reach."""
        if self._tokenizer is None and self.config.tokenizer_id and not self._out_of_reach:
            try:
                self._tokenizer = load_untrusted(AutoTokenizer, self.config.tokenizer_id)
            except (OSError, ValueError):  # after retries of half a minute: once is enough
                self._out_of_reach = True
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = value

    @property
    def chat_template(self) -> str | None:
        """One question and its answer as a Jinja template; None without a tokenizer."""
        if self._chat_template is None and self.tokenizer is not None:
            self._chat_template = ChatWords(self).template()
        return self._chat_template

    @chat_template.setter
    def chat_template(self, value: str | None) -> None:
        self._chat_template = value

    def __repr__(self) -> str:
        tokenizer = type(self._tokenizer).__name__ if self._tokenizer else self.config.tokenizer_id
        return f"{type(self).__name__}(release={self.config.release}, tokenizer={tokenizer}, {self.image_processor})"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> MoondreamProcessor:
        """From a folder or Hub id in the official or our own layout.

        Our own layout carries its tokenizer. The official one does not (the one next to the 2025-06-21 weights is an
        older release's): there it is the Hub repository of the release, and where that cannot be reached the processor
        works on `prompt_ids` alone.
        """
        config = load_untrusted(MoondreamConfig, pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if (folder / "preprocessor_config.json").is_file():
            image_processor = MoondreamImageProcessor.from_pretrained(folder)
            has_tokenizer = (folder / "tokenizer.json").is_file()
            tokenizer = load_untrusted(AutoTokenizer, folder) if has_tokenizer else None
            return cls(config, image_processor, tokenizer)
        return cls(config)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write preprocessor_config.json, the tokenizer and config.json, from which `from_pretrained` reads.

        `kwargs` are those of `push_to_hub`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.image_processor.save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / "preprocessor_config.json")]

    # Inputs

    def __call__(
        self,
        images: Image.Image | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        *,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        add_special_tokens: bool = True,
        padding: Literal[True] = True,
        padding_side: Literal["left", "right"] = "left",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Model inputs for a batch: `input_ids`, `attention_mask` (B, T), and with images `pixel_values`, `tilings`.

        `images` are one a prompt, or lists of one. `text` are questions; with `add_special_tokens=False` they are what
        `apply_chat_template` has rendered, or parts of it.
        `prompt_ids` that hold numbers (see `query_ids`) give `coordinates` (B, T) and `sizes` (B, T, 2) too.
        """
        if (text is None) == (prompt_ids is None):
            raise ValueError("give exactly one of text and prompt_ids")
        if videos is not None or audio is not None:
            raise ValueError("moondream2 supports only images: give no videos and no audio")
        pictures = None if images is None else one_each(images)
        prefix = [self.config.bos_token_id]
        if pictures is not None:
            prefix += [self.config.image_token_id] * self.config.vision_config.num_image_tokens
        if prompt_ids is None:
            assert text is not None
            texts = [text] if isinstance(text, str) else text
            if not add_special_tokens:
                words = ChatWords(self)
                return self._batch([words.ids(one) for one in texts], {}, pictures, padding_side, return_tensors)
            prompt_ids = [self.query_ids(question) for question in texts]
        rows = [[*prefix, *ids] for ids in prompt_ids]
        numbers = {
            i: {len(prefix) + index: value for index, value in numbers_of(ids).items()}
            for i, ids in enumerate(prompt_ids)
        }
        return self._batch(rows, numbers, pictures, padding_side, return_tensors)

    def _batch(
        self,
        rows: Sequence[Sequence[int]],
        numbers: Mapping[int, Mapping[int, tuple[float, ...]]],
        images: list[Image.Image] | None,
        padding_side: Literal["left", "right"],
        return_tensors: str | None,
    ) -> BatchFeature:
        """Padded rows of ids, their images and their numbers (by row and index) as tensors."""
        wanted = sum(self.config.image_token_id in row for row in rows)
        if len(images or ()) != wanted or (images is not None and wanted != len(rows)):
            raise ValueError(f"{len(images or ())} images for {len(rows)} prompts: give one image per prompt, or none")
        longest, limit = max(map(len, rows)), self.config.text_config.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"the prompt makes a sequence of {longest} tokens, and the model's context is {limit}: shorten the "
                f"question by {longest - limit} tokens"
            )
        input_ids = torch.full((len(rows), longest), self.config.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding_side == "left" else slice(0, len(row))
            input_ids[i, place] = torch.tensor(row)
            attention_mask[i, place] = 1
        starts = [longest - len(row) if padding_side == "left" else 0 for row in rows]
        placed = [
            {start + index: value for index, value in numbers.get(i, {}).items()} for i, start in enumerate(starts)
        ]
        data = {"input_ids": input_ids, "attention_mask": attention_mask, **stack_numbers(placed, longest)}
        if images is not None:
            data |= self.image_processor(images, return_tensors="pt")
        return BatchFeature(data, tensor_type=return_tensors)

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Text of generated ids, special tokens left out."""
        if self.tokenizer is None:
            raise ValueError(f"decoding needs the tokenizer {self.config.tokenizer_id}")
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, **kwargs))

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        return [self.decode(sequence, **kwargs) for sequence in sequences]


def one_each(images: Image.Image | Sequence[Any]) -> list[Image.Image]:
    """Images, or lists of one image each, as a list of images."""
    if isinstance(images, Image.Image):
        return [images]
    found = [image if isinstance(image, Image.Image) else list(image) for image in images]
    if any(isinstance(image, list) and len(image) != 1 for image in found):
        raise ValueError("moondream2 reads one image per prompt: give lists of one")
    return [image[0] if isinstance(image, list) else image for image in found]
