"""The ids after the image prefix from which a moondream answers, captions, finds things, or starts to think.

Those of the official code at the release of the checkpoint: `configuration.RELEASES` has the tokens around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from vlm_detect.errors import UserError
from vlm_detect.models.moondream.configuration import DEFAULT_RELEASE, RELEASES, MoondreamConfig
from vlm_detect.models.prompt import Prompt

Reference = Sequence[float]


class MoondreamPrompts:
    """The prompts of one checkpoint; `tokenizer` is None where it cannot be had."""

    config: MoondreamConfig
    tokenizer: PreTrainedTokenizerBase | None

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Special tokens that the text spells out stay text: no input can forge a marker."""
        if self.tokenizer is None:
            raise UserError(
                f"text needs the tokenizer {self.config.tokenizer_id}, which is not in the official layout and could "
                "not be downloaded: check the network, use a folder of `vlm-detect export --to merged`, which has it, "
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


def reference_numbers(reference: Reference) -> list[tuple[float, ...]]:
    """What a point or box is encoded as: its place x and y, of a box the middle, and then its width and height."""
    if len(reference) not in (2, 4) or not all(0 <= number <= 1 for number in reference):
        raise UserError(
            f"spatial reference {list(reference)}: give a point [x, y] or a box [x_min, y_min, x_max, y_max], as "
            "fractions of the image's width and height from 0 to 1"
        )
    if len(reference) == 2:
        return [(reference[0],), (reference[1],)]
    x_min, y_min, x_max, y_max = reference
    if x_max < x_min or y_max < y_min:
        raise UserError(f"spatial reference {list(reference)}: its maximum is below its minimum")
    return [((x_min + x_max) / 2,), ((y_min + y_max) / 2,), (x_max - x_min, y_max - y_min)]
