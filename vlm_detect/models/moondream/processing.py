"""Images and questions to model inputs, with the prompts of the official query() and caption().

    processor(images=[photo], text=["Is this image AI-generated?"], return_tensors="pt")
    processor(images=[photo], prompt_ids=[[1, 15381, 2, ...]], return_tensors="pt")     # without a tokenizer

Each row becomes `[BOS][image placeholders][prompt]`; without images `[BOS][prompt]`. Rows are padded on the left, as
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
from vlm_detect.models.moondream.configuration import DEFAULT_RELEASE, RELEASES, MoondreamConfig
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor
from vlm_detect.models.prompt import Prompt, numbers_of, stack_numbers
from vlm_detect.models.untrusted import load_untrusted

Reference = Sequence[float]


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
                self._tokenizer = load_untrusted(AutoTokenizer, self.config.tokenizer_id)
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
        config = load_untrusted(MoondreamConfig, pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if (folder / "preprocessor_config.json").is_file():
            image_processor = MoondreamImageProcessor.from_pretrained(folder)
            has_tokenizer = (folder / "tokenizer.json").is_file()
            tokenizer = load_untrusted(AutoTokenizer, folder) if has_tokenizer else None
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

    def query_ids(self, question: str, references: Sequence[Reference] = ()) -> Prompt:
        """The ids after the image prefix that the official query() decodes from.

        `references` are places that the question is about, points (x, y) or boxes (x_min, y_min, x_max, y_max), in
        parts of the image's width and height.
        """
        suffix = self.config.templates["query"]["suffix"] * self.config.query_suffix_repeats
        return self._asked(question, references, suffix)

    def reasoning_ids(self, question: str, references: Sequence[Reference] = ()) -> Prompt:
        """The ids after the image prefix from which query(reasoning=True) starts to think."""
        self.require_extras("reasoning mode")
        suffix = [*self.config.templates["query"]["suffix"], self.config.thinking_token_id]
        return self._asked(question, references, suffix)

    def _asked(self, question: str, references: Sequence[Reference], suffix: Sequence[int]) -> Prompt:
        if references:
            self.require_extras("spatial references")
        numbers = [number for reference in references for number in reference_numbers(reference)]
        tokens = {1: self.config.coord_token_id, 2: self.config.size_token_id}
        prefix = self.config.templates["query"]["prefix"]
        encoded = self.encode(self.config.question_prefix + question)
        ids = [*prefix, *(tokens[len(one)] for one in numbers), *encoded, *suffix]
        return Prompt(ids, dict(enumerate(numbers, start=len(prefix))))

    def require_extras(self, what: str) -> None:
        """UserError where the release came before reasoning, spatial references and questions without an image."""
        if not RELEASES[self.config.release].has_extras:
            raise UserError(f"release {self.config.release} has no {what}: give the release {DEFAULT_RELEASE}")

    def object_ids(self, skill: Literal["detect", "point"], phrase: str) -> list[int]:
        """The ids after the image prefix from which detect() or point() finds what `phrase` names."""
        template = self.config.templates[skill]
        return [*template["prefix"], *self.encode(f" {phrase}"), *template["suffix"]]

    def gaze_ids(self, eye: tuple[float, float]) -> Prompt:
        """The ids after the image prefix from which detect_gaze() finds where the eye at (x, y) looks.

        Text of the first releases' prompts, in every release; the eye is rounded to bfloat16, as in the official code.
        """
        before, after = self.encode("\n\nPoint:"), self.encode(" gaze\n\n")
        x, y = torch.tensor(eye, dtype=torch.bfloat16).tolist()
        ids = [*before, *[self.config.coord_token_id] * 2, *after]
        return Prompt(ids, {len(before): (x,), len(before) + 1: (y,)})

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
        """Model inputs for a batch: `input_ids`, `attention_mask` (B, T), and with images `pixel_values`, `tilings`.

        `prompt_ids` that hold numbers (see `query_ids`) give `coordinates` (B, T) and `sizes` (B, T, 2) too.
        """
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
        starts = [(longest - len(row) if padding_side == "left" else 0) + len(prefix) for row in rows]
        numbers = [
            {start + index: value for index, value in numbers_of(ids).items()}
            for start, ids in zip(starts, prompt_ids, strict=True)
        ]
        data |= stack_numbers(numbers, longest)
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


def reference_numbers(reference: Reference) -> list[tuple[float, ...]]:
    """What a point or box is encoded as: its place x and y, of a box the middle, and then its width and height."""
    if len(reference) not in (2, 4) or not all(0 <= number <= 1 for number in reference):
        raise UserError(
            f"spatial reference {list(reference)}: give a point [x, y] or a box [x_min, y_min, x_max, y_max], in parts "
            "of the image's width and height from 0 to 1"
        )
    if len(reference) == 2:
        return [(reference[0],), (reference[1],)]
    x_min, y_min, x_max, y_max = reference
    if x_max < x_min or y_max < y_min:
        raise UserError(f"spatial reference {list(reference)}: its maximum is below its minimum")
    return [((x_min + x_max) / 2,), ((y_min + y_max) / 2,), (x_max - x_min, y_max - y_min)]
