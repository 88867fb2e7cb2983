"""The engine: encode an image once, then ask any number of questions. Used by captioning, benchmark, chat, scan and
serve.

    engine = Engine(load_vlm("nano"))
    engine.score([photo], [[Ask("Is this image AI-generated?", ("Yes.", "No."))]])     # log-probabilities, one forward
    engine.generate([photo], [["What is in the picture?"]])                            # greedy text
    engine.caption([photo])

Images are encoded in one batch of the tower and prefilled once into the KV cache; the prefix stays in memory (an LRU
cache bounded in bytes) for later calls. All questions and candidate answers of an image then follow it in one packed
row. `vlm_detect.infer.reference` is the plain path that this one must agree with; models whose image prefix depends on
what follows it use the plain path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from vlm_detect.infer.asks import Ask, CandidateScore, greedy
from vlm_detect.infer.batch_size import BatchSize, bytes_to_hold, images_that_fit, rows_that_fit
from vlm_detect.infer.branches import Branches, room_for
from vlm_detect.infer.locate import (
    MAX_OBJECTS,
    STEPS,
    Skill,
    locate,
    needs_moondream,
    object_prompts,
    random_eyes,
    steady_gaze,
)
from vlm_detect.infer.prefixes import Prefix, PrefixMemory, check_length, encode, equal_lengths, prefill
from vlm_detect.infer.reasoning import REASONING_TOKENS, Reasoned, ReasonedAnswer, reason_steps, reasoning_prompt
from vlm_detect.infer.reference import generate_plain, score_plain, stream_plain
from vlm_detect.infer.sampling import generate_rows
from vlm_detect.infer.scoring import score_packed
from vlm_detect.models.base import VLM
from vlm_detect.models.regions import Box, Point

Item = TypeVar("Item")
Asked = TypeVar("Asked")


class Engine:
    """Runs one model on images, in batches of at most `batch_images`, and of fewer where memory is short.

    `cache_bytes` bounds the memory of image prefixes kept between calls; on a GPU they take a quarter of what is free
    at most. With `fixed_batches` memory changes no batch (see `BatchSize`).
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        batch_images: int = 16,
        batch_rows: int = 64,
        cache_bytes: int = 2 << 30,
        fixed_batches: bool = False,
    ) -> None:
        self.vlm = vlm
        self.memory = PrefixMemory(vlm, cache_bytes)
        adapting: Any = {"give_up": self.memory.clear, "fixed": fixed_batches}
        self.images_at_once = BatchSize(batch_images, lambda: self._fitting(images_that_fit), **adapting)
        self.rows_at_once = BatchSize(batch_rows, lambda: self._fitting(rows_that_fit), what="prompts", **adapting)

    def _fitting(self, estimate: Callable[..., int | None]) -> int | None:
        if (most := bytes_to_hold(self.vlm)) is not None:
            self.memory.shrink(most)
        return estimate(self.vlm, reserved=self.memory.max_bytes)

    @property
    def batch_images(self) -> int:
        """The size of the next batch."""
        return self.images_at_once.now

    # Prefixes

    def prepare_ahead(self, images: Sequence[Image.Image]) -> None:
        """Have threads prepare what will be asked about soon, while the GPU computes; returns at once."""
        self.memory.ahead.begin(images)

    def prefixes(self, images: Sequence[Image.Image | None]) -> list[Prefix]:
        """The prefix of each image, from memory where cached; None is a question without an image."""
        return self.memory.prefixes(images)

    def pooled(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features (N, F) of the tower for a head; of images that were just asked about, no second reading."""
        return np.stack(self.images_at_once.run(images, lambda some: list(self.memory.pooled(some))))

    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Image embeddings (B, N, D), always recomputed."""
        return encode(self.vlm, images)

    def prefill(self, embeds: torch.Tensor) -> list[Prefix]:
        """The prefix of each of (B, N, D) image embeddings; not cached."""
        return prefill(self.vlm, embeds)

    # Scoring

    def score(self, images: Sequence[Image.Image], asks: Sequence[Sequence[Ask]]) -> list[list[list[CandidateScore]]]:
        """Log-probabilities of answers: per image, per ask, one score per candidate."""
        if not self.vlm.supports_prefix_cache:
            return [
                [[score_plain(self.vlm, image, a.question, one, whole=a.whole) for one in a.candidates] for a in some]
                for image, some in zip(images, asks, strict=True)
            ]
        return self.images_at_once.run(paired(images, asks), self._score)

    def _score(self, asked: Sequence[tuple[Image.Image, Sequence[Ask]]]) -> list[list[list[CandidateScore]]]:
        """As `score`, in one batch."""
        prefixes = self.prefixes([image for image, _ in asked])
        found: dict[int, list[list[CandidateScore]]] = {}
        for alike in equal_lengths(prefixes):
            scored = self.score_prefixes([prefixes[i] for i in alike], [asked[i][1] for i in alike])
            found |= dict(zip(alike, scored, strict=True))
        return [found[i] for i in range(len(prefixes))]

    def score_prefixes(
        self, prefixes: Sequence[Prefix], asks: Sequence[Sequence[Ask]]
    ) -> list[list[list[CandidateScore]]]:
        """As `score`, after prefixes of equal length, as one batch."""
        return score_packed(self.vlm, prefixes, asks)

    # Generation

    def generate(
        self,
        images: Sequence[Image.Image | None],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = 32,
        **options: Any,
    ) -> list[list[str]]:
        """An answer to each question of each image; greedy unless `options` (transformers' generate) say otherwise.

        None in place of an image asks without one, which not every model supports.
        """
        prompts = [[self.vlm.question_ids(question) for question in some] for some in questions]
        return self.continue_prompts(images, prompts, max_new_tokens, **options)

    def caption(
        self, images: Sequence[Image.Image], length: str = "normal", max_new_tokens: int = 128, **options: Any
    ) -> list[str]:
        """A caption of each image."""
        prompt = self.vlm.caption_ids(length)
        answers = self.continue_prompts(images, [[prompt]] * len(images), max_new_tokens, **options)
        return [answer for (answer,) in answers]

    @torch.inference_mode()
    def continue_prompts(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        **options: Any,
    ) -> list[list[str]]:
        """Text generated after each prompt (ids after the image prefix) of each image.

        Greedy answers to all prompts of an image are decoded in parallel after one prefix. With `options` (sampling, a
        streamer) transformers' generate is used, one row per prompt.
        """
        if not (self.vlm.has_fixed_prefix or (self.vlm.supports_prefix_cache and not options)):
            return [
                [generate_plain(self.vlm, image, prompt, max_new_tokens, **options) for prompt in some]
                for image, some in zip(images, prompts, strict=True)
            ]
        if not options:
            packed = partial(self._generate_packed, max_new_tokens=max_new_tokens)
            return self.images_at_once.run(paired(images, prompts), packed)
        answers: list[list[str]] = [[] for _ in images]
        # Rows with and without an image have prefixes of different lengths, so they form separate batches.
        rows = [(i, prompt) for i, some in enumerate(prompts) for prompt in some]
        rows.sort(key=lambda row: images[row[0]] is None)
        with_image = sum(images[i] is not None for i, _ in rows)
        for alike in (rows[:with_image], rows[with_image:]):
            texts = self.rows_at_once.run(
                [(images[i], prompt) for i, prompt in alike],
                partial(self._generate_rows, max_new_tokens=max_new_tokens, options=options),
            )
            for (i, _), text in zip(alike, texts, strict=True):
                answers[i].append(text)
        return answers

    def _generate_rows(
        self, rows: Sequence[tuple[Image.Image | None, Sequence[int]]], max_new_tokens: int, options: dict[str, Any]
    ) -> list[str]:
        """Text after one prompt of each of the images, or of none of them: one batch."""
        images, prompts = zip(*rows, strict=True)
        prefix_ids = self.vlm.text_prefix_ids() if images[0] is None else self.vlm.prefix_ids()
        return generate_rows(self.vlm, self.prefixes(images), prefix_ids, prompts, max_new_tokens, options)

    def room(self, prompt: Sequence[int], *, with_image: bool = True) -> int:
        """How many tokens can follow `prompt` after an image or alone; UserError where there is room for none."""
        length = len(self.vlm.prefix_ids() if with_image else self.vlm.text_prefix_ids()) + len(prompt)
        check_length(self.vlm, length + 1)
        return self.vlm.context - length

    def _generate_packed(
        self, asked: Sequence[tuple[Image.Image | None, Sequence[Sequence[int]]]], max_new_tokens: int
    ) -> list[list[str]]:
        """Greedy answers to every prompt of every image."""
        images, prompts = zip(*asked, strict=True)
        answers: list[list[str]] = [[] for _ in images]
        prefixes = self.memory.prefixes(images, room_for(prompts, max_new_tokens))
        for alike in equal_lengths(prefixes):
            some = [prompts[i] for i in alike]
            for prompt in (prompt for row in some for prompt in row):
                check_length(self.vlm, len(prefixes[alike[0]]) + len(prompt) + max_new_tokens)
            steps = list(self._stream([prefixes[i] for i in alike], some, max_new_tokens))
            if not steps:
                continue
            ids_of, eos = torch.stack(steps, dim=-1).tolist(), self.vlm.eos_token_id  # (B, prompts, steps)
            for i, row_ids in zip(alike, ids_of, strict=True):
                texts = [self.vlm.decode(until(tokens, eos)).strip() for tokens in row_ids[: len(prompts[i])]]
                answers[i] = texts
        return answers

    @torch.inference_mode()
    def stream(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
    ) -> Iterator[torch.Tensor]:
        """Decode every prompt of every image in parallel, one step per iteration.

        Yields ids (images, most prompts of an image): the next token of each prompt, the end of text for prompts that
        have ended and for padding. `choose` turns logits (images, prompts, vocabulary) into ids. The images form one
        batch, with prefixes of equal length, and the caller makes sure that no prompt exceeds its `room`.
        """
        if self.vlm.supports_prefix_cache:
            yield from self._stream(self.prefixes(images), prompts, max_new_tokens, choose)
        else:
            yield from stream_plain(self.vlm, images, prompts, max_new_tokens, choose)

    @torch.inference_mode()
    def _stream(
        self,
        prefixes: Sequence[Prefix],
        prompts: Sequence[Sequence[Sequence[int]]],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor] = greedy,
    ) -> Iterator[torch.Tensor]:
        """As `stream`, after prefixes of equal length."""
        if not any(map(len, prompts)):
            return
        branches = Branches(self.vlm, prefixes, prompts, max_new_tokens)
        ended, eos = ~branches.there, self.vlm.eos_token_id
        for step in range(max_new_tokens):
            if step == 1:
                suppressed = torch.zeros(branches.logits.shape[-1], device=self.vlm.device)
                suppressed[list(self.vlm.first_only_ids)] = -torch.inf
            chosen = choose(branches.logits if step == 0 else branches.logits + suppressed)  # (B, prompts)
            chosen = torch.where(ended, eos, chosen)
            yield chosen
            ended = ended | (chosen == eos)
            if bool(ended.all()) or step + 1 == max_new_tokens:
                return
            branches.read(chosen)

    # Places

    def detect(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], max_objects: int = MAX_OBJECTS
    ) -> list[list[list[Box]]]:
        """The boxes of what each phrase names in each image; UserError for a model without a region head."""
        found: Any = self._locate(images, object_prompts(self.vlm, phrases, "detect"), "detect", max_objects)
        return found

    def point(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], max_objects: int = MAX_OBJECTS
    ) -> list[list[list[Point]]]:
        """A point on each object that each phrase names in each image; UserError for a model without a region head."""
        found: Any = self._locate(images, object_prompts(self.vlm, phrases, "point"), "point", max_objects)
        return found

    def gaze(
        self, images: Sequence[Image.Image], eyes: Sequence[Sequence[Point]], *, force: bool = False
    ) -> list[list[Point | None]]:
        """The gaze target of an eye in each image; None where the model finds no target, unless `force` is set."""
        vlm = needs_moondream(self.vlm, "gaze skill")
        prompts = [[vlm.processor.gaze_ids(eye) for eye in some] for some in eyes]
        found: Any = self._locate(images, prompts, "point", 1, force=force)
        return [[points[0] if points else None for points in some] for some in found]

    def gaze_of_face(
        self, image: Image.Image, face: Box, *, force: bool = False, seed: int | None = None
    ) -> Point | None:
        """As `gaze`, but more stable: the mean over twenty random eye positions in `face`, ten of them in the mirrored
        image."""
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found, flipped = self.gaze([image, mirrored], random_eyes(face, seed), force=force)
        return steady_gaze([*found, *(point and Point(1 - point.x, point.y) for point in flipped)])

    def _locate(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[Sequence[Sequence[int]]],
        skill: Skill,
        max_objects: int,
        *,
        force: bool = False,
    ) -> list[list[list[Box | Point]]]:
        def locate_some(asked: Sequence[tuple[Image.Image, Sequence[Sequence[int]]]]) -> list[list[list[Box | Point]]]:
            some, some_prompts = zip(*asked, strict=True)
            found: list[list[list[Box | Point]]] = [[[] for _ in row] for row in some_prompts]
            limits = [[min(max_objects, self.room(one) // STEPS[skill]) for one in row] for row in some_prompts]
            for step in locate(self.vlm, self.prefixes(some), some_prompts, skill, limits, force=force):
                found = step
            return found

        return self.images_at_once.run(paired(images, prompts), locate_some)

    # Reasoning

    def reason(
        self,
        images: Sequence[Image.Image | None],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = REASONING_TOKENS,
    ) -> list[list[ReasonedAnswer]]:
        """Reasoning and then an answer to each question of each image; UserError for a model without a reasoning mode.

        `max_new_tokens` bounds each of the two; the context bounds both together.
        """
        vlm = self.vlm
        prompts = [
            [reasoning_prompt(vlm, question, with_image=image is not None) for question in some]
            for image, some in zip(images, questions, strict=True)
        ]

        def reason_some(asked: Sequence[tuple[Image.Image | None, Sequence[Sequence[int]]]]) -> list[list[Reasoned]]:
            prefixes = self.prefixes([image for image, _ in asked])
            texts: list[list[Reasoned]] = [[] for _ in asked]
            for alike in equal_lengths(prefixes):
                some = [asked[i][1] for i in alike]
                limits = [[max_new_tokens] * len(row) for row in some]
                for step in reason_steps(vlm, [prefixes[i] for i in alike], some, limits):
                    for i, row in zip(alike, step, strict=True):
                        texts[i] = row
            return texts

        texts = self.images_at_once.run(paired(images, prompts), reason_some)
        return [[text.read(vlm) for text in row] for row in texts]


def until(ids: list[int], end: int) -> list[int]:
    """Ids before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids


def paired(images: Sequence[Item], asked: Sequence[Asked]) -> list[tuple[Item, Asked]]:
    """Each image with what is asked of it."""
    if len(images) != len(asked):
        raise ValueError(f"{len(images)} images with {len(asked)} lists of questions: give one list per image")
    return list(zip(images, asked, strict=True))
