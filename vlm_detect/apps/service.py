"""Between the routes and the worker: bounded decoding, waiting for results, and metrics.

A waiting request notices when its client disconnects, and cancels its job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from vlm_detect.apps.asked import asked, part_of, unless_gone
from vlm_detect.apps.bodies import Part
from vlm_detect.apps.decoding import Decoding
from vlm_detect.apps.errors import ApiError, Expired, as_api_error, refused_image
from vlm_detect.apps.logs import current_request
from vlm_detect.apps.metrics import ModelMetrics
from vlm_detect.apps.settings import ServerSettings
from vlm_detect.apps.tasks import Answer, TextTask, Write
from vlm_detect.apps.worker import Done, Event, Failed, Job, Task, Worker
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.explanation import Explanation
from vlm_detect.infer.picture import Picture
from vlm_detect.models.cnn.detector import CnnDetector


class Service:
    """The models of one server and the thread that runs them; the first detector is the default.

    `cnn`, if given, only shows where it looks, next to the evidence maps of the others.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        settings: ServerSettings,
        metrics: ModelMetrics,
        cnn: CnnDetector | None = None,
    ) -> None:
        self.detectors = dict(detectors)
        self.cnn = cnn
        self.settings = settings
        self.metrics = metrics
        self.worker = Worker(
            max_jobs=settings.max_jobs,
            max_pixels=settings.max_held_pixels,
            max_batch=settings.max_batch,
            max_lanes=1 if settings.max_batch == 1 else 4,
            observe=lambda kind, size: self.metrics.batch.labels(kind).observe(size),
            observe_held=self.metrics.jobs.set,
        )
        self._decoding = Decoding(settings)
        self._checking = ThreadPoolExecutor(1, "vlm-detect-checks")
        self._gathering = asyncio.Lock()  # held by a request while it decodes many images

    def detector(self, name: str | None) -> Detector:
        if name is None:
            return next(iter(self.detectors.values()))
        if name not in self.detectors:
            known = ", ".join(self.detectors)
            raise ApiError(404, "model_not_found", f"no model named {name[:100]!r}; available: {known}", param="model")
        return self.detectors[name]

    # Images

    async def picture(self, source: str | Part, param: str = "image_url") -> Picture:
        """The image of a data URL or of a form part."""
        part = source if isinstance(source, Part) else part_of(source)
        try:
            return await asked().within_deadline(self._decoding.picture(part))
        except ImageRejected as error:
            raise refused_image(error, param) from error

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Exclusive access among requests with many images; `Expired` where the deadline passes first."""
        has_turn = False
        try:
            async with asyncio.timeout(asked().deadline - time.monotonic()):
                has_turn = await self._gathering.acquire()
            yield
        except TimeoutError:
            raise Expired("the deadline passed before the images were read") from None
        finally:
            if has_turn:
                self._gathering.release()

    def stop(self) -> None:
        """Stop the worker and the decoders."""
        self._decoding.stop()
        self._checking.shutdown(wait=False, cancel_futures=True)
        self.worker.stop()

    # Jobs

    def start(self, task: Task, detector: Detector, pictures: Sequence[Picture | None]) -> Started:
        """Submit one job per picture (None for a question without an image), all or none."""
        return self.start_each([task] * len(pictures), detector, pictures)

    def start_each(self, tasks: Sequence[Task], detector: Detector, pictures: Sequence[Picture | None]) -> Started:
        """As `start`, a task for each picture."""
        deadline = asked().deadline
        queues = [Events() for _ in pictures]
        jobs = [
            Job(task, detector, picture, events.put, deadline, current_request())
            for task, picture, events in zip(tasks, pictures, queues, strict=True)
        ]
        self.worker.submit(jobs)
        detector.prepare_ahead([picture for picture in pictures if picture is not None])
        return list(zip(jobs, queues, strict=True))

    async def results(self, request: Request, started: Started) -> list[Any | Exception]:
        """The result of each job, or why it failed; nothing is streamed."""

        async def ended() -> list[
            Any | Exception
        ]:  # not `gather`, which logs a traceback when nothing awaits it any more
            return [await events.last() for _, events in started]

        try:
            return await unless_gone(request, ended())
        finally:
            for job, _ in started:
                job.cancel()

    async def result(self, request: Request, task: Task, detector: Detector, picture: Picture | None) -> Any:
        (found,) = await self.results(request, self.start(task, detector, [picture]))
        if isinstance(found, Exception):
            raise found
        return found

    async def verdicts(self, request: Request, started: Started) -> list[Verdict | Exception]:
        """As `results`, for verdict jobs, which are counted."""
        found = await self.results(request, started)
        for verdict in found:
            if isinstance(verdict, Verdict):
                self.metrics.verdicts.labels(verdict.label).inc()
                self.metrics.contradictions.inc(bool(verdict.contradictions))
        return found

    async def explanations(
        self, request: Request, detector: Detector, pictures: Sequence[Picture], verdicts: Sequence[Verdict]
    ) -> list[Explanation | Exception]:
        """The explanation of each verdict, checked; or why there is none."""
        tasks = [self.explain_task(verdict) for verdict in verdicts]
        written = await self.results(request, self.start_each(tasks, detector, pictures)) if tasks else []
        found: list[Explanation | Exception] = []
        for verdict, answer in zip(verdicts, written, strict=True):
            if isinstance(answer, Answer):
                self.metrics.tokens.inc(answer.n_tokens)
                found.append(await self.checked(verdict, answer.text))
            else:
                found.append(answer)
        return found

    def explain_task(self, verdict: Verdict) -> Write:
        """Writes the explanation of a verdict."""
        return Write(lambda detector: detector.explanation_prompt(verdict.label), self.settings.max_new_tokens)

    async def checked(self, verdict: Verdict, text: str) -> Explanation:
        """An explanation of `verdict` checked against the image: one at a time, as large images take gigabytes."""
        waiting = asyncio.get_running_loop().run_in_executor(self._checking, verdict.check, text)
        try:
            async with asyncio.timeout(asked().deadline - time.monotonic()):
                found = await waiting
        except TimeoutError:
            raise Expired("the deadline passed before the explanation was checked") from None
        self.metrics.contradictions.inc(found.against_verdict and not verdict.contradictions)
        return found

    async def text(self, request: Request, task: TextTask, detector: Detector, picture: Picture | None) -> Answer:
        answer: Answer = await self.result(request, task, detector, picture)
        self.metrics.tokens.inc(answer.n_tokens)
        return answer

    async def pieces(self, task: TextTask, detector: Detector, picture: Picture | None) -> AsyncIterator[str | Answer]:
        """The pieces of a text as they are generated, then its `Answer`; the job is submitted before the first is
        awaited."""
        ((job, events),) = self.start(task, detector, [picture])

        async def follow() -> AsyncIterator[str | Answer]:
            try:
                async for event in events:
                    if isinstance(event, str):
                        yield event
                    elif isinstance(event, Failed):
                        raise event.error
                    else:
                        self.metrics.tokens.inc(event.value.n_tokens)
                        yield event.value
            finally:
                job.cancel()

        return follow()


class Events:
    """The events of one job, passed from the worker's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._queue.get()
            yield event
            if not isinstance(event, str):
                return

    async def last(self) -> Any:
        """The result of the job, or the exception that it failed with."""
        async for event in self:
            if isinstance(event, Done):
                return event.value
            if isinstance(event, Failed):
                return event.error
        raise AssertionError("a job ended without an event")


Started = list[tuple[Job, Events]]


def prompt_of(
    question: str, settings: ServerSettings, references: Sequence[Sequence[float]] = ()
) -> Callable[[Detector], tuple[str, list[int]]]:
    """The prompt of a `Write` task for a question; rejected where it is empty or far too long."""
    checked = checked_text(question, settings)
    return lambda detector: ("", detector.question_prompt(checked, references))


def checked_text(text: str, settings: ServerSettings, param: str = "question") -> str:
    """A question or the name of an object, within bounds."""
    if not text.strip():
        raise ApiError(400, f"empty_{param}", f"the {param} is empty", param=param)
    if len(text) > settings.max_question_chars:
        limit = f"{len(text)} characters, at most {settings.max_question_chars}"
        raise ApiError(400, f"{param}_too_long", f"the {param} is too long: {limit}", param=param)
    return text


def error_body(error: Exception) -> dict[str, Any]:
    return as_api_error(error).body()
