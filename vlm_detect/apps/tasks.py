"""Worker tasks on an image: verdict, answer, evidence map."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from vlm_detect.apps.logprobs import TokenLogprob, token_logprob
from vlm_detect.apps.worker import Job, Task
from vlm_detect.cnn.heatmap import heat_maps, overlay
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.evidence import evidence_steps
from vlm_detect.infer.prefixes import equal_lengths
from vlm_detect.infer.text_stream import TextStream
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.moondream.skills import Reasoning
from vlm_detect.records import Topic


@dataclass
class Judge:
    """Ends with the `Verdict`."""

    kind = "verdict"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        for job, verdict in zip(jobs, jobs[0].detector.judge([job.seen for job in jobs]), strict=True):
            job.done(verdict)
        yield


@dataclass(frozen=True)
class Answer:
    """`length` is True where the text ended at its token limit; `n_tokens` includes the reasoning."""

    text: str
    n_prompt_tokens: int
    n_tokens: int
    length: bool
    reasoning: Reasoning | None = None
    logprobs: Sequence[TokenLogprob] = ()


class TextTask(Task, Protocol):
    """A task that emits pieces of text and ends with an `Answer`."""


class Sampled(Protocol):
    """How a task chooses its tokens; temperature 0 is greedy."""

    temperature: float
    top_p: float


@dataclass
class Write:
    """Ends with an `Answer`, after its pieces; with its tokens' log-probabilities where `top_logprobs` is given.

    `prompt` gives the beginning of the text and the ids that prompt for the rest; it may raise UserError. Temperature 0
    is greedy; otherwise `top_p` filters tokens as moondream's decoder does.
    """

    prompt: Callable[[Detector], tuple[str, list[int]]]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int | None = None
    kind = "text"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        running = [(some, _stream(some)) for some in of_one_length(start_each(jobs, _Row))]
        while running:
            for batch in list(running):
                some, steps = batch
                step = next(steps, None)
                if step is not None:
                    for row, (token,) in zip(some, step.tolist(), strict=True):
                        row.push(token)
                if step is None or not any(row.job.wanted() for row in some):
                    running.remove(batch)
            yield


class Row(Protocol):
    """The state of one job while its lane runs."""

    job: Job


R = TypeVar("R", bound=Row)


def start_each(jobs: Sequence[Job], make: Callable[[Job], R]) -> list[R]:
    """The row of each job; if its prompt is rejected, only that job fails."""
    rows = []
    for job in jobs:
        try:
            rows.append(make(job))
        except UserError as error:
            job.fail(error)
        except ValueError as error:  # such as a caption length that the release does not have
            job.fail(UserError(str(error)))
    return rows


def of_one_length(rows: Sequence[R]) -> list[list[R]]:
    """Group rows that the engine can decode together: prefixes differ in length by image size, and without an image."""
    if not rows:
        return []
    engine = rows[0].job.detector.engine
    if not engine.vlm.supports_prefix_cache:
        return [[row] for row in rows]
    prefixes = engine.prefixes([row.job.image for row in rows])
    return [[rows[i] for i in alike] for alike in equal_lengths(prefixes)]


def _stream(rows: Sequence[_Row]) -> Iterator[torch.Tensor]:
    sample = sampler([row.job.task for row in rows])

    def choose(logits: torch.Tensor) -> torch.Tensor:  # (B, 1, V) to (B, 1)
        chosen = sample(logits)
        for row, (values,), (token,) in zip(rows, logits, chosen.tolist(), strict=True):
            row.note(values, token)
        return chosen

    return rows[0].job.detector.engine.stream(
        [row.job.image for row in rows],
        [[row.prompt] for row in rows],
        max(row.limit for row in rows),
        choose=choose,
    )


class _Row:
    """The state of one text while it is generated."""

    def __init__(self, job: Job) -> None:
        task: Write = job.task
        engine, with_image = job.detector.engine, job.image is not None
        beginning, prompt = task.prompt(job.detector)
        self.job = job
        self.beginning = beginning
        self._before = f"{beginning} " if beginning else ""
        self.prompt = prompt
        self.limit = min(task.max_new_tokens, engine.room(prompt, with_image=with_image))
        self.n_prompt_tokens = engine.vlm.context - engine.room(prompt, with_image=with_image)
        self.end = engine.vlm.eos_token_id
        self.text = TextStream(engine.vlm)
        self.logprobs: list[TokenLogprob] = []
        self._top_logprobs = task.top_logprobs

    def note(self, logits: torch.Tensor, token: int) -> None:
        """Record the logits (V,) that `token` was chosen from, before it is pushed."""
        if self._top_logprobs is not None and self.job.open and token != self.end:
            self.logprobs.append(token_logprob(logits, token, self._top_logprobs))

    def push(self, token: int) -> None:
        if not self.job.open:
            return
        if token != self.end:
            self._emit(self.text.push(token))
        if token == self.end or self.text.n_tokens == self.limit:
            self._emit(self.text.finish(), last=True)
            text = " ".join(part for part in (self.beginning, self.text.text) if part)
            cut_off = token != self.end
            n_tokens = (self.n_prompt_tokens, self.text.n_tokens)
            self.job.done(Answer(text, *n_tokens, cut_off, logprobs=self.logprobs))

    def _emit(self, piece: str, last: bool = False) -> None:
        if piece:
            self.job.emit(self._before + piece)
            self._before = ""
        elif last and self._before:
            self.job.emit(self.beginning)


def sampler(tasks: Sequence[Sampled]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Chooses each row's next id by its own task's temperature and top_p."""
    temperature = torch.tensor([task.temperature for task in tasks])[:, None, None]
    top_p = torch.tensor([task.top_p for task in tasks])[:, None, None]

    def choose(logits: torch.Tensor) -> torch.Tensor:
        likeliest = logits.argmax(-1)  # (B, 1)
        if not bool(temperature.any()):
            return likeliest
        probabilities = (logits.float().cpu() / temperature.clamp(min=1e-4)).softmax(-1)
        ordered, ids = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered > top_p] = 0
        sampled = ids.gather(-1, torch.multinomial(ordered.squeeze(1), 1)[:, None]).squeeze(-1)
        return torch.where(temperature.squeeze(-1) > 0, sampled.to(likeliest.device), likeliest)

    return choose


@dataclass
class Map:
    """Ends with the `EvidenceMap`; handles one image at a time, as its regions already fill a batch."""

    topic: Topic = "generation"
    kind = "evidence"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        for job in jobs:
            steps = evidence_steps(job.detector.engine, job.seen.image, topic=job.task.topic)
            while job.wanted():
                try:
                    next(steps)
                except StopIteration as end:
                    job.done(end.value)
                    break
                yield


@dataclass(frozen=True)
class CnnLook:
    """A CNN's verdict and where it looks: `heat` is its input with the Grad-CAM overlaid, (S, S, 3) uint8."""

    label: str
    p_fake: float
    heat: np.ndarray


@dataclass
class LookByCnn:
    """Ends with a `CnnLook`."""

    cnn: CnnDetector
    kind = "grad_cam"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        pixels = self.cnn.pixels([job.seen.image for job in jobs])
        scores, heat = self.cnn.scores([job.seen.image for job in jobs]), heat_maps(self.cnn, pixels)
        for i, job in enumerate(jobs):
            p_fake = float(scores.p_fake[i])
            job.done(CnnLook(self.cnn.label(p_fake), p_fake, overlay(pixels[i], heat[i])))
        yield
