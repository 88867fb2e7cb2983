"""Reasoning before the answer: moondream's query(reasoning=True), in batches.

Every prompt is in one of three states: reasoning, reading the marker that starts its answer, or answering; each step
processes one token of each. A coordinate token in the reasoning is replaced by the place that the region head predicts.
`vlm_detect.models.moondream.skills.reason` is the loop for one prompt, which this one must agree with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch

from vlm_detect.infer.asks import greedy
from vlm_detect.infer.branches import Branches
from vlm_detect.infer.locate import needs_moondream
from vlm_detect.infer.prefixes import Prefix, check_length
from vlm_detect.models.base import VLM
from vlm_detect.models.moondream.configuration import MoondreamConfig
from vlm_detect.models.moondream.prompts import Reference
from vlm_detect.models.moondream.skills import Reasoning, Thoughts

REASONING_TOKENS = 768  # of the reasoning, and of the answer, as in the official code


class ReasonedAnswer(NamedTuple):
    """`cut_off` is True where the answer ended at its token limit; `n_tokens` counts reasoning and answer."""

    reasoning: Reasoning
    answer: str
    cut_off: bool
    n_tokens: tuple[int, int]


class Forbids(IntEnum):
    """The token ids that are masked next."""

    NOTHING = 0
    END = 1  # the end of text and sizes, while reasoning
    ANSWER_MARKER = 2  # while answering


@dataclass
class Reasoned:
    """The state of one prompt's reasoning and answer. `room` is the total number of tokens that may follow the
    prompt."""

    config: MoondreamConfig
    max_new_tokens: int
    room: int
    thoughts: Thoughts
    answer_ids: list[int] = field(default_factory=list)
    thinks: bool = True
    ended: bool = False
    marker: list[int] = field(default_factory=list)  # remaining ids of the marker

    @property
    def forbids(self) -> Forbids:
        if self.thinks:
            return Forbids.END if self.thoughts.ids else Forbids.NOTHING
        return Forbids.ANSWER_MARKER if self.answer_ids else Forbids.NOTHING

    @property
    def cut_off(self) -> bool:
        """Whether the answer ended at its limit."""
        return self.ended and len(self.answer_ids) >= self._answer_limit

    def read(self, vlm: VLM) -> ReasonedAnswer:
        """The text of reasoning and answer."""
        n_tokens = len(self.thoughts.ids), len(self.answer_ids)
        answer = vlm.decode(self.answer_ids).strip()
        return ReasonedAnswer(self.thoughts.ground(vlm.decode), answer, self.cut_off, n_tokens)

    @property
    def _suffix(self) -> list[int]:
        return self.config.templates["query"]["suffix"]

    @property
    def _thought_limit(self) -> int:
        """With a short context, a quarter of it is reserved for the answer."""
        kept = max(1, min(self.max_new_tokens, self.room // 4))
        return min(self.max_new_tokens, self.room - len(self._suffix) - kept)

    @property
    def _answer_limit(self) -> int:
        return min(self.max_new_tokens, self.room - len(self.thoughts.ids) - len(self._suffix))

    def take(self, chosen: int, coordinate: float) -> tuple[int, float]:
        """The token to read after `chosen` was predicted, and the coordinate that replaces it, or NaN."""
        config = self.config
        if self.thinks:
            if chosen != config.answer_token_id and len(self.thoughts.ids) < self._thought_limit:
                self.thoughts.add(chosen, coordinate)
                return chosen, coordinate if chosen == config.coord_token_id else math.nan
            self.thinks, self.marker = False, list(self._suffix)
        if self.marker:
            return self.marker.pop(0), math.nan
        if not self.ended:
            self.ended = chosen == config.eos_token_id
            if not self.ended:
                self.answer_ids.append(chosen)
                self.ended = len(self.answer_ids) >= self._answer_limit
        return chosen, math.nan


def reasoning_prompt(
    vlm: VLM, question: str, references: Sequence[Reference] = (), *, with_image: bool = True
) -> list[int]:
    """The ids after the prefix; UserError for a model without a reasoning mode, or without room for an answer."""
    moondream = needs_moondream(vlm, "reasoning mode")
    prompt = moondream.processor.reasoning_ids(question, references)
    prefix = vlm.prefix_ids() if with_image else vlm.text_prefix_ids()
    least = len(moondream.processor.config.templates["query"]["suffix"]) + 2  # reasoning, the marker, one word
    check_length(vlm, len(prefix) + len(prompt) + least)
    return prompt


@torch.inference_mode()
def reason_steps(
    vlm: VLM,
    prefixes: Sequence[Prefix],
    prompts: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: Sequence[Sequence[int]],
    choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
) -> Iterator[list[list[Reasoned]]]:
    """The reasoning and answer of every prompt of every image, one more token per iteration; the last iteration is
    complete.

    `max_new_tokens` bounds each prompt's reasoning and its answer; the context bounds both together. All prefixes have
    the same length. `choose` turns logits (images, prompts, vocabulary) into ids.
    """
    moondream = needs_moondream(vlm, "reasoning mode")
    config = moondream.processor.config
    if not any(map(len, prompts)):
        return
    texts = [
        [
            Reasoned(config, most, vlm.context - len(prefixes[0]) - len(prompt), Thoughts(config))
            for prompt, most in zip(some, limits, strict=True)
        ]
        for some, limits in zip(prompts, max_new_tokens, strict=True)
    ]
    branches = Branches(vlm, prefixes, prompts)
    forbidden = torch.zeros(len(Forbids), branches.logits.shape[-1], device=vlm.device)
    forbidden[Forbids.END, [config.eos_token_id, config.size_token_id]] = -torch.inf
    forbidden[Forbids.ANSWER_MARKER, config.answer_token_id] = -torch.inf
    state = torch.zeros(branches.there.shape, dtype=torch.long)
    while True:
        for i, some in enumerate(texts):
            for j, text in enumerate(some):
                state[i, j] = text.forbids
        chosen = choose(branches.logits + forbidden[state.to(vlm.device)])
        coordinates = moondream.region.read_coordinate(branches.hidden).tolist()
        ids = chosen.tolist()
        placed = [[math.nan] * len(row) for row in ids]
        for i, some in enumerate(texts):
            for j, text in enumerate(some):
                ids[i][j], placed[i][j] = text.take(ids[i][j], coordinates[i][j])
        yield texts
        if all(text.ended for some in texts for text in some):
            return
        branches.read(torch.tensor(ids, device=vlm.device), coordinates=torch.tensor(placed, device=vlm.device))
