"""The loops behind detect(), point(), detect_gaze() and query(reasoning=True), one prompt at a time.

    inputs = processor(images=[photo], prompt_ids=[processor.object_ids("detect", "face")])
    detect(model, inputs)                                   # [Box(x_min, y_min, x_max, y_max), ...]

    inputs = processor(images=[photo], prompt_ids=[processor.reasoning_ids("How many ships are there?")])
    thoughts, answer_ids = reason(model, inputs)
    thoughts.ground(processor.decode)                       # the text, and which parts of it point where

They follow the official code step by step; the engine does the same in batches and is tested against them. All are
greedy. Source: vikhyat/moondream `moondream.py` (`_generate_points`, `_generate_reasoning`, `_detect_gaze`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from vlm_detect.models.moondream.configuration import MoondreamConfig
from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration
from vlm_detect.models.regions import Box, Point

MAX_OBJECTS = 50


class Grounding(NamedTuple):
    """A part of a text, in characters, and the points that the model named in it."""

    start_idx: int
    end_idx: int
    points: list[Point]


class Reasoning(NamedTuple):
    text: str
    grounding: list[Grounding]


@dataclass
class Thoughts:
    """What a model thinks before it answers: ids, and the coordinate that each coordinate token among them stands for.

    A new chunk begins at the tokens that open and close a list of points; a chunk's coordinates belong together.
    """

    config: MoondreamConfig
    ids: list[int] = field(default_factory=list)
    coordinates: list[float] = field(default_factory=list)

    def add(self, token_id: int, coordinate: float) -> None:
        """Append an id; `coordinate` counts where it is the coordinate token."""
        self.ids.append(token_id)
        if token_id == self.config.coord_token_id:
            self.coordinates.append(coordinate)

    def ground(self, decode: Callable[[list[int]], str]) -> Reasoning:
        """The text, and the points of each chunk that has at least two coordinates; an odd last one is dropped."""
        openers = (self.config.start_ground_points_token_id, self.config.end_ground_token_id)
        chunks: list[list[int]] = [[]]
        for token_id in self.ids:
            if token_id in openers:
                chunks.append([])
            chunks[-1].append(token_id)
        text, grounding, upcoming = "", [], iter(self.coordinates)
        for chunk in chunks:
            start, text = len(text), text + decode(chunk)
            found = [next(upcoming) for token_id in chunk if token_id == self.config.coord_token_id]
            points = [Point(x, y) for x, y in zip(found[::2], found[1::2], strict=False)]
            if points:
                grounding.append(Grounding(start, len(text), points))
        return Reasoning(text, grounding)


class _Reader:
    """One prompt in the cache: the logits (V,) and the region head's hidden state (1, D) at its last position."""

    def __init__(self, model: MoondreamForConditionalGeneration, inputs: Any) -> None:
        if inputs["input_ids"].shape[0] != 1:
            raise ValueError(f"this takes one prompt at a time, not {inputs['input_ids'].shape[0]}")
        self.model = model
        self.region = model.model.region
        self._cache = DynamicCache(config=model.config.text_config)
        self._read(**inputs)

    def _read(self, **inputs: Any) -> None:
        out = self.model.model(**inputs, past_key_values=self._cache, use_cache=True)
        self.logits = self.model.model.text.lm_head(out.last_hidden_state[0, -1])
        self.hidden = out.region_hidden_state[:, -1]

    def token(self, token_id: int) -> None:
        """Read a token."""
        self._read(inputs_embeds=self.model.model.text.wte(torch.tensor([[token_id]], device=self.model.device)))

    def coordinate(self) -> float:
        """The coordinate that the hidden state gives, which is read in turn."""
        logits = self.region.decode_coordinate(self.hidden)
        value = logits.argmax(-1) / logits.shape[-1]
        self._read(inputs_embeds=self.region.encode_coordinate(value.to(logits.dtype)[None, :, None]))
        return float(value)

    def size(self) -> tuple[float, float]:
        """The width and height that the hidden state gives, which are read in turn."""
        value = self.region.read_size(self.hidden)
        self._read(inputs_embeds=self.region.encode_size(value.to(self.model.dtype)[None]))
        return float(value[0, 0]), float(value[0, 1])

    def likeliest(self, forbidden: Iterable[int] = ()) -> int:
        """The likeliest id that is not forbidden."""
        logits = self.logits.clone()
        logits[list(forbidden)] = -torch.inf
        return int(logits.argmax())


@torch.inference_mode()
def detect(model: MoondreamForConditionalGeneration, inputs: Any, max_objects: int = MAX_OBJECTS) -> list[Box]:
    """The boxes of what the prompt names."""
    reader = _Reader(model, inputs)
    found: list[Box] = []
    while reader.likeliest() != model.config.eos_token_id and len(found) < max_objects:
        x, y = reader.coordinate(), reader.coordinate()
        found.append(Box.around(x, y, *reader.size()))
    return found


@torch.inference_mode()
def point(model: MoondreamForConditionalGeneration, inputs: Any, max_objects: int = MAX_OBJECTS) -> list[Point]:
    """The points of what the prompt names."""
    reader = _Reader(model, inputs)
    found: list[Point] = []
    while reader.likeliest() != model.config.eos_token_id and len(found) < max_objects:
        found.append(Point(reader.coordinate(), reader.coordinate()))
    return found


@torch.inference_mode()
def gaze(model: MoondreamForConditionalGeneration, inputs: Any, *, force: bool = False) -> Point | None:
    """Where the eye of the prompt looks; None where the model says that it looks nowhere, unless `force`."""
    reader = _Reader(model, inputs)
    if not force and reader.likeliest() == model.config.eos_token_id:
        return None
    return Point(reader.coordinate(), reader.coordinate())


@torch.inference_mode()
def reason(
    model: MoondreamForConditionalGeneration, inputs: Any, max_new_tokens: int = 768
) -> tuple[Thoughts, list[int]]:
    """The thoughts, which end at the answer marker or after `max_new_tokens`, and the ids of the answer."""
    config, reader = model.config, _Reader(model, inputs)
    thoughts = Thoughts(config)
    answer_ids: list[int] = []
    next_id = reader.likeliest()
    while next_id != config.answer_token_id and len(thoughts.ids) < max_new_tokens:
        if next_id == config.coord_token_id:
            thoughts.add(next_id, reader.coordinate())
        else:
            thoughts.add(next_id, 0.0)
            reader.token(next_id)
        next_id = reader.likeliest((config.eos_token_id, config.size_token_id))

    for token_id in config.templates["query"]["suffix"]:
        reader.token(token_id)
    next_id = reader.likeliest()
    while next_id != config.eos_token_id and len(answer_ids) < max_new_tokens:
        answer_ids.append(next_id)
        reader.token(next_id)
        next_id = reader.likeliest((config.answer_token_id,))
    return thoughts, answer_ids
