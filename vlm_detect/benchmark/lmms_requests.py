"""Requests of lmms-eval, read and answered by the engine; lmms-eval itself is not needed here.

    decoding = Decoding.read({"max_new_tokens": 16, "until": ["\\n"], "temperature": 0})
    request = Request("vlm_detect, document 0", photo, "Is this image AI-generated?")
    generate(engine, [request], decoding)               # ["Yes."]

What a model cannot read (an image of a shape that it refuses, a question that leaves no room in its context) gets an
empty answer and one line on stderr: lmms-eval has no items without an answer.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.picture import open_picture
from vlm_detect.models.base import VLM
from vlm_detect.questions.markup import untagged

DEFAULT_TOKENS = 1024  # of a task that states no number, as the models of lmms-eval take it
_OF_SAMPLING = ("temperature", "top_p", "top_k")
_ELSEWHERE = ("num_beams", "repetition_penalty")
_READ = {"max_new_tokens", "max_gen_toks", "until", "do_sample", *_OF_SAMPLING, *_ELSEWHERE}


class Request(NamedTuple):
    """One question; `name` is what messages call it."""

    name: str
    image: Image.Image | None
    question: str

    @classmethod
    def read(cls, name: str, visuals: Sequence[Any] | None, context: str) -> Request:
        """From what a task shows and asks; UserError for a video, a sound, or several images."""
        if not visuals:
            return cls(name, None, untagged(context))
        if len(visuals) > 1 or not isinstance(visuals[0], Image.Image):
            kinds = sorted({"image" if isinstance(one, Image.Image) else type(one).__name__ for one in visuals})
            raise UserError(f"{name} shows {len(visuals)} of {', '.join(kinds)}: choose a task with one image at most")
        return cls(name, open_picture(visuals[0]).image, untagged(context))


@dataclass(frozen=True)
class Decoding:
    """How a task wants text: `options` are those of transformers' `generate`, none for greedy decoding."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> tuple[Decoding, list[str]]:
        """From the `generation_kwargs` of a task, and the names of those that are not known here.

        A temperature of 0 is greedy. One above 0 samples unless `do_sample` says otherwise.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
        options: dict[str, Any] = {name: given[name] for name in _ELSEWHERE if given.get(name, 1) != 1}
        if temperature > 0 and given.get("do_sample", True):
            options |= {"do_sample": True, **{name: given[name] for name in _OF_SAMPLING if name in given}}
        until = given.get("until", ())
        ends = (until,) if isinstance(until, str) else tuple(until)
        tokens = int(given.get("max_new_tokens", given.get("max_gen_toks", DEFAULT_TOKENS)))
        return cls(tokens, tuple(filter(None, ends)), tuple(sorted(options.items()))), sorted(given.keys() - _READ)

    def cut(self, text: str) -> str:
        """`text` before the first of `until`."""
        for end in self.until:
            text = text.partition(end)[0]
        return text


def generate(engine: Engine, requests: Sequence[Request], decoding: Decoding) -> list[str]:
    """A text for each request, of at most as many tokens as its context has room for."""
    alike: dict[int, list[int]] = defaultdict(list)
    for place in _readable(engine.vlm, requests):
        alike[min(decoding.max_new_tokens, _room(engine.vlm, requests[place]))].append(place)
    texts = [""] * len(requests)
    for tokens, places in alike.items():
        images, questions = [requests[i].image for i in places], [[requests[i].question] for i in places]
        answers = engine.generate(images, questions, tokens, **dict(decoding.options))
        for place, (text,) in zip(places, answers, strict=True):
            texts[place] = decoding.cut(text)
    return texts


def _readable(vlm: VLM, requests: Sequence[Request]) -> list[int]:
    """The places of the requests that the model reads; the reasons of others go to stderr."""
    places = []
    for place, request in enumerate(requests):
        reason = vlm.refusal(request.image.size) if request.image is not None else None
        if reason is None and _room(vlm, request) < 1:
            reason = f"the question leaves no room in the context of {vlm.context} tokens"
        if reason is None:
            places.append(place)
        else:
            print(f"{request.name}: {reason}; its answer is empty", file=sys.stderr)
    return places


def _room(vlm: VLM, request: Request) -> int:
    """How many tokens can follow the request."""
    image = request.image
    prefix = len(vlm.text_prefix_ids()) if image is None else vlm.prefix_length(image.size)
    return vlm.context - prefix - len(vlm.question_ids(request.question))
