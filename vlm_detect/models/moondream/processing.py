"""Images and questions to model inputs, with the prompts of the official query() and caption().

    processor(images=[photo], text=["Is this image AI-generated?"], return_tensors="pt")
    processor(images=[photo], prompt_ids=[[1, 15381, 2, ...]], return_tensors="pt")     # without a tokenizer

Each row becomes [BOS][image placeholders][prompt]; without images [BOS][prompt]. Rows are padded on the left, as
generation needs it (`padding_side="right"` for training).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import PushToHubMixin

from vlm_detect.errors import UserError
from vlm_detect.models.moondream.configuration import RELEASES, MoondreamConfig
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor


class MoondreamProcessor(PushToHubMixin):
    """The image processor, the tokenizer (optional) and the prompt templates of one checkpoint."""

    model_input_names = ["input_ids", "attention_mask", "pixel_values", "tilings"]  # noqa: RUF012

    def __init__(
        self,
        config: MoondreamConfig,
        image_processor: MoondreamImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
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

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, fetched at first use where it lies in a Hub repository of its own; None where out of reach."""
        if self._tokenizer is None and self.config.tokenizer_id:
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.config.tokenizer_id)
            except (OSError, ValueError):
                return None
        return self._tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> MoondreamProcessor:
        """From a folder or Hub id in the official or our own layout.

        Our own layout carries its tokenizer. The official one does not (what lies beside the 2025-06-21 weights is an
        older release's): there it is the Hub repository of the release, and where that cannot be reached the processor
        works on `prompt_ids` alone.
        """
        config = MoondreamConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if (folder / "preprocessor_config.json").is_file():
            image_processor = MoondreamImageProcessor.from_pretrained(folder)
            has_tokenizer = (folder / "tokenizer.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
            return cls(config, image_processor, tokenizer)
        return cls(config)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write preprocessor_config.json, the tokenizer and config.json, from which `from_pretrained` reads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.image_processor.save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)

    # Prompts

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Special tokens that the text spells out stay text: no input can forge a marker."""
        if self.tokenizer is None:
            raise UserError(
                f"text needs the tokenizer {self.config.tokenizer_id}, which the official layout does not hold and the "
                "Hub did not give: check the network, use a folder of `vlm-detect export --to merged`, which holds it, "
                "or pass prompt_ids"
            )
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def query_ids(self, question: str) -> list[int]:
        """The ids after the image prefix that the official query() decodes from."""
        template = self.config.templates["query"]
        suffix = template["suffix"] * self.config.query_suffix_repeats
        return [*template["prefix"], *self.encode(self.config.question_prefix + question), *suffix]

    def reasoning_ids(self, question: str) -> list[int]:
        """The ids after the image prefix from which query(reasoning=True) starts to think."""
        if not RELEASES[self.config.release].has_reasoning:
            raise ValueError(f"release {self.config.release} has no reasoning mode; the newest does")
        template = self.config.templates["query"]
        encoded = self.encode(self.config.question_prefix + question)
        return [*template["prefix"], *encoded, *template["suffix"], self.config.thinking_token_id]

    def caption_ids(self, length: str = "normal") -> list[int]:
        """The ids after the image prefix that the official caption() decodes from."""
        templates = self.config.templates["caption"]
        if length not in templates:
            raise ValueError(f"caption length {length!r} is not one of {', '.join(templates)} of this release")
        return list(templates[length])

    def answer_ids(self, answer: str) -> list[int]:
        """An answer as it is learned and scored: its tokens and the end of text."""
        return [*self.encode(answer), self.config.eos_token_id]

    # Inputs

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        prompt_ids: Sequence[Sequence[int]] | None = None,
        return_tensors: str = "pt",
        padding_side: Literal["left", "right"] = "left",
    ) -> BatchFeature:
        """Model inputs for a batch: `input_ids`, `attention_mask` (B, T), and with images `pixel_values`, `tilings`."""
        if (text is None) == (prompt_ids is None):
            raise ValueError("give exactly one of text and prompt_ids")
        if text is not None:
            prompt_ids = [self.query_ids(question) for question in ([text] if isinstance(text, str) else text)]
        assert prompt_ids is not None
        prefix = [self.config.bos_token_id]
        data: dict[str, Any] = {}
        if images is not None:
            images = [images] if isinstance(images, Image.Image) else list(images)
            if len(images) != len(prompt_ids):
                raise ValueError(f"{len(images)} images for {len(prompt_ids)} prompts: give one image a prompt")
            prefix += [self.config.image_token_id] * self.config.vision_config.num_image_tokens
            data |= self.image_processor(images, return_tensors="pt")
        rows = [[*prefix, *ids] for ids in prompt_ids]
        longest, limit = max(map(len, rows)), self.config.text_config.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"a prompt of {longest - len(prefix)} tokens makes a sequence of {longest}, and the model's context is "
                f"{limit}: shorten the question by {longest - limit} tokens"
            )
        input_ids = torch.full((len(rows), longest), self.config.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if padding_side == "left" else slice(0, len(row))
            input_ids[i, place] = torch.tensor(row)
            attention_mask[i, place] = 1
        return BatchFeature(
            {"input_ids": input_ids, "attention_mask": attention_mask, **data}, tensor_type=return_tensors
        )

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Text of generated ids, special tokens left out."""
        if self.tokenizer is None:
            raise ValueError(f"decoding needs the tokenizer {self.config.tokenizer_id}")
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, **kwargs))

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        return [self.decode(sequence, **kwargs) for sequence in sequences]
