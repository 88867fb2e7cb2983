"""Worker tasks for moondream2 only: detection, pointing, gaze, and reasoning before an answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from vlm_detect.apps.tasks import Answer, of_one_length, sampler, start_each
from vlm_detect.apps.worker import Job
from vlm_detect.infer.locate import STEPS, Skill, locate, object_prompts
from vlm_detect.infer.reasoning import Reasoned, reason_steps, reasoning_prompt
from vlm_detect.infer.text_stream import TextStream
from vlm_detect.models.regions import Box, Point


@dataclass(frozen=True)
class Located:
    """`cut_off` is True where there may be more objects."""

    places: list[Box | Point]
    cut_off: bool


@dataclass
class Locate:
    """Ends with a `Located`: at most `max_objects` boxes (`detect`) or points (`point`)."""

    skill: Skill
    phrase: str
    max_objects: int

    def __post_init__(self) -> None:
        self.kind: str = self.skill

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        rows = start_each(jobs, _Sought)
        if not rows:
            return
        engine = rows[0].job.detector.engine
        prefixes = engine.prefixes([row.job.image for row in rows])
        found: list[list[list[Box | Point]]] = [[[]] for _ in rows]
        prompts, limits = [[row.prompt] for row in rows], [[row.limit] for row in rows]
        for step in locate(engine.vlm, prefixes, prompts, self.skill, limits):
            found = step
            if not any(row.job.wanted() for row in rows):
                return
            yield
        for row, (places,) in zip(rows, found, strict=True):
            row.job.done(Located(places, len(places) == row.limit))


class _Sought:
    """The state of one phrase while its objects are found."""

    def __init__(self, job: Job) -> None:
        task: Locate = job.task
        engine = job.detector.engine
        self.job = job
        ((self.prompt,),) = object_prompts(engine.vlm, [[task.phrase]], task.skill)
        self.limit = min(task.max_objects, engine.room(self.prompt) // STEPS[task.skill])


@dataclass
class FindGaze:
    """Ends with a `Point` or None: the target of the gaze of an eye or a face."""

    eye: Point | None
    face: Box | None
    force: bool = False
    kind = "gaze"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        for job in jobs:
            if not job.wanted():
                continue
            task: FindGaze = job.task
            engine, image = job.detector.engine, job.seen.image
            if task.face is not None:
                job.done(engine.gaze_of_face(image, task.face, force=task.force))
            elif task.eye is not None:
                job.done(engine.gaze([image], [[task.eye]], force=task.force)[0][0])
            yield


@dataclass
class Reason:
    """Ends with an `Answer` that includes its reasoning, after the answer's pieces."""

    question: str
    references: Sequence[Sequence[float]]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    kind = "reasoning"

    def lane(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        running = [(some, _steps(some)) for some in of_one_length(start_each(jobs, _Thinker))]
        while running:
            for batch in list(running):
                some, steps = batch
                step = next(steps, None)
                if step is not None:
                    for row, (text,) in zip(some, step, strict=True):
                        row.follow(text)
                if step is None or not any(row.job.wanted() for row in some):
                    running.remove(batch)
            yield


class _Thinker:
    """The state of one answer while it is generated."""

    def __init__(self, job: Job) -> None:
        task: Reason = job.task
        vlm, with_image = job.detector.engine.vlm, job.image is not None
        self.job = job
        self.prompt = reasoning_prompt(vlm, task.question, task.references, with_image=with_image)
        self.n_prompt_tokens = len(vlm.prefix_ids() if with_image else vlm.text_prefix_ids()) + len(self.prompt)
        self.text = TextStream(vlm)

    def follow(self, text: Reasoned) -> None:
        """Emit the new text of the answer."""
        if not self.job.open:
            return
        for token in text.answer_ids[self.text.n_tokens :]:
            if piece := self.text.push(token):
                self.job.emit(piece)
        if text.ended:
            if rest := self.text.finish():
                self.job.emit(rest)
            found = text.read(self.job.detector.engine.vlm)
            n_tokens = sum(found.n_tokens)
            self.job.done(Answer(found.answer, self.n_prompt_tokens, n_tokens, found.cut_off, found.reasoning))


def _steps(rows: Sequence[_Thinker]) -> Iterator[list[list[Reasoned]]]:
    engine = rows[0].job.detector.engine
    prefixes = engine.prefixes([row.job.image for row in rows])
    limits = [[row.job.task.max_new_tokens] for row in rows]
    choose = sampler([row.job.task for row in rows])
    return reason_steps(engine.vlm, prefixes, [[row.prompt] for row in rows], limits, choose)
