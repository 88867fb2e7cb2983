"""Teachers and judges of reasons: a common interface for a model behind an endpoint or a local model.

    asked = open_model(AskedModel("qwen2.5-vl", "http://localhost:8000/v1"))       # or AskedModel("nano"), loaded
    locally asked.answer([Prompt((photo, twin), "How do they differ?")], 512)         # one Reply per prompt
    asked.log_odds([(photo, "Is this true: ...?")], ("Yes.", "No."))           # where `gives_logprobs`

A local model reads one image at a time, so the images of a prompt are placed side by side.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.endpoint import Endpoint, Prompt, Reply
from vlm_detect.infer.endpoint_client import is_this_machine

_GAP = 8  # pixels between images placed side by side


@dataclass(frozen=True)
class AskedModel:
    """A model and its endpoint; without an endpoint it is loaded locally."""

    name: str
    endpoint: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    parallel: int = 8

    @property
    def is_full_size(self) -> bool:
        """Whether a worker on a cluster needs a GPU for it."""
        from vlm_detect.models.registry import is_full_size  # lazy: imports torch, which a plan does not need

        return self.endpoint is None and is_full_size(self.name)

    @property
    def leaves_this_machine(self) -> bool:
        """Whether its images are sent to another machine."""
        return self.endpoint is not None and not is_this_machine(self.endpoint)

    def __str__(self) -> str:
        return f"{self.name} at {self.endpoint}" if self.endpoint else self.name


class Asked(Protocol):
    @property
    def gives_logprobs(self) -> bool: ...

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]: ...

    def log_odds(
        self, questions: Sequence[tuple[Image.Image, str]], candidates: tuple[str, str]
    ) -> list[float | None]: ...


@functools.lru_cache(maxsize=2)
def open_model(model: AskedModel) -> Asked:
    """Connect or load, once per process."""
    if model.endpoint:
        key = os.environ.get(model.api_key_env)
        return Endpoint(model.endpoint, model.name, api_key=key, parallel=model.parallel)
    return LocalModel(model.name)


class LocalModel:
    """A vision-language model of the registry."""

    gives_logprobs = True

    def __init__(self, name: str) -> None:
        from vlm_detect.infer.engine import Engine
        from vlm_detect.models.registry import load_vlm

        self.name = name
        self.engine = Engine(load_vlm(name))

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]:
        images = [side_by_side(prompt.images) for prompt in prompts]
        vlm = self.engine.vlm
        room = min(
            vlm.context - vlm.prefix_length(image.size) - len(vlm.question_ids(prompt.text))
            for image, prompt in zip(images, prompts, strict=True)
        )
        if room < 1:
            raise UserError(
                f"{self.name}: a teacher's question does not fit its context of {vlm.context} tokens; "
                "use a --teacher with a longer context"
            )
        said = self.engine.generate(images, [[prompt.text] for prompt in prompts], min(max_new_tokens, room))
        return [Reply(texts[0]) for texts in said]

    def log_odds(self, questions: Sequence[tuple[Image.Image, str]], candidates: tuple[str, str]) -> list[float | None]:
        """Log-odds of the first candidate against the second, in nats."""
        asks = [[Ask(question, candidates)] for _, question in questions]
        scores = self.engine.score([image for image, _ in questions], asks)
        return [first.logprob - second.logprob for ((first, second),) in scores]


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """All images in one, from left to right, on white."""
    if len(images) == 1:
        return images[0]
    width = sum(image.width for image in images) + _GAP * (len(images) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + _GAP
    return joined
