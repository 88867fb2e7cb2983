"""One thread that owns the models and batches the jobs that arrive together.

    worker = Worker(max_jobs=64)
    worker.submit([Job(task, detector, picture, on_event, deadline)])     # Busy where the queue is full

Waiting jobs of one kind and model become a lane: one batch through the engine. Lanes take turns, one step each (one
token of every answer, one batch of hidden regions), so that a verdict does not wait for a long answer that started
earlier. Events (`str` pieces of text, then one `Done` or `Failed`) are passed to a job's `on_event` from this thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from vlm_detect.apps.errors import Busy, Expired, Stopped
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.picture import Picture
from vlm_detect.machine import has_failed, is_out_of_memory

log = logging.getLogger(__name__)
GATHER_S = 0.004  # how long an idle worker waits for more jobs after the first


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Failed:
    error: Exception


Event = str | Done | Failed


class Task(Protocol):
    """What to compute for an image; tasks of equal `kind` may share a batch."""

    kind: str

    def lane(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Process `jobs`, all of this kind; yields between steps."""


@dataclass(eq=False)
class Job:
    """`deadline` is a time of `time.monotonic()`; a question without an image has no picture."""

    task: Any
    detector: Detector
    picture: Picture | None
    on_event: Callable[[Event], None]
    deadline: float = math.inf
    request_id: str | None = None  # for the log
    open: bool = field(default=True, init=False)  # not yet ended
    begun: bool = field(default=False, init=False)  # some of its text was sent

    @property
    def image(self) -> Image.Image | None:
        return None if self.picture is None else self.picture.image

    @property
    def seen(self) -> Picture:
        """The picture of a task that requires one."""
        assert self.picture is not None
        return self.picture

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height if self.image else 0

    def emit(self, piece: str) -> None:
        if self.open:
            self.begun = True
            self.on_event(piece)

    def done(self, value: Any) -> None:
        self._end(Done(value))

    def fail(self, error: Exception) -> None:
        self._end(Failed(error))

    def cancel(self) -> None:
        """The client is gone: the worker drops the job at its next step."""
        self.open = False

    def wanted(self) -> bool:
        """Whether to continue with the job; fails it if its deadline has passed."""
        if self.open and time.monotonic() > self.deadline:
            self.fail(Expired("the deadline passed before the answer was ready"))
        return self.open

    def _end(self, event: Done | Failed) -> None:
        if self.open:
            self.open = False
            self.on_event(event)


@dataclass(eq=False)
class _Lane:
    steps: Iterator[None]
    jobs: list[Job]
    since: float = field(default_factory=time.perf_counter)


class Worker:
    """`max_jobs` and `max_pixels` bound queued and running jobs, at most `max_batch` jobs make a lane (fewer where the
    model's memory is short), `max_lanes` run at a time.

    `observe(kind, size)` is called for every lane that starts, `observe_held(n)` when the number of jobs changes.
    """

    def __init__(
        self,
        *,
        max_jobs: int = 64,
        max_pixels: int = 400_000_000,
        max_batch: int = 16,
        max_lanes: int = 4,
        observe: Callable[[str, int], None] = lambda kind, size: None,
        observe_held: Callable[[int], None] = lambda n: None,
    ) -> None:
        self.max_jobs = max_jobs
        self.max_pixels = max_pixels
        self.max_batch = max_batch
        self.max_lanes = max_lanes
        self._observe = observe
        self._observe_held = observe_held
        self._waiting: deque[Job] = deque()
        self._running: list[_Lane] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_a_job = 0.1
        self._thread = threading.Thread(target=self._run, name="vlm-detect-worker", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accept all of `jobs` or none: raises `Busy` if there is no room, `Stopped` during shutdown."""
        with self._changed:
            if self._stopping:
                raise Stopped("the server is shutting down")
            held = self._held()
            pixels = sum(job.pixels for job in (*held, *jobs))
            if len(held) + len(jobs) > self.max_jobs or (held and pixels > self.max_pixels):
                raise Busy(max(1, math.ceil(len(held) * self._seconds_a_job)))
            self._waiting.extend(jobs)
            self._observe_held(len(held) + len(jobs))
            self._changed.notify()

    @property
    def n_held(self) -> int:
        """Jobs queued or running."""
        with self._changed:
            return len(self._held())

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def accepts(self) -> bool:
        """Whether jobs are accepted, if there is room."""
        return self.is_alive and not self._stopping

    def _held(self) -> list[Job]:
        return [*self._waiting, *(job for lane in self._running for job in lane.jobs)]

    def stop(self, timeout_s: float = 10) -> None:
        """Accept no more jobs, fail the remaining ones, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    for job in self._held():
                        job.fail(Stopped("the server is shutting down"))
                    return
                idle = not self._running
            if idle and self.max_batch > 1:
                time.sleep(GATHER_S)
            self._start_lanes()
            for lane in list(self._running):
                self._step(lane)
            with self._changed:  # also around the call: a count that comes late would stay
                self._observe_held(self.n_held)

    def _start_lanes(self) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.wanted())
            while self._waiting and len(self._running) < self.max_lanes:
                first = self._waiting[0]
                most = min(self.max_batch, first.detector.engine.batch_images)
                jobs = [job for job in self._waiting if _alike(job, first)][:most]
                self._waiting = deque(job for job in self._waiting if job not in jobs)
                self._observe(first.task.kind, len(jobs))
                self._running.append(_Lane(first.task.lane(jobs), jobs))

    def _step(self, lane: _Lane) -> None:
        try:
            if sum(job.wanted() for job in lane.jobs):  # each must notice its deadline
                next(lane.steps)
                return
        except StopIteration:
            pass
        # An exception of a model must fail these jobs and not end the thread that all others depend on.
        except Exception as error:
            if has_failed(error):
                self._give_up(lane.jobs, error)
            else:
                self._part_or_fail(lane.jobs, error)
        with self._changed:
            self._running.remove(lane)
            spent = (time.perf_counter() - lane.since) / len(lane.jobs)
            self._seconds_a_job += 0.1 * (spent - self._seconds_a_job)

    def _give_up(self, jobs: Sequence[Job], error: Exception) -> None:
        """The thread ends, and with it the server's liveness, so that what watches it starts another."""
        log.error("the accelerator failed, and would fail every later job: start the server again", exc_info=error)
        with self._changed:
            self._stopping = True
        for job in jobs:
            job.fail(Stopped("the server's accelerator failed"))

    def _part_or_fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """One bad job must not fail its whole batch: a failed batch is retried job by job."""
        left = [job for job in jobs if job.open]
        if is_out_of_memory(error):
            jobs[0].detector.engine.images_at_once.halve(len(jobs))
        if len(jobs) > 1 and not any(job.begun for job in left):
            with self._changed:
                self._running += [_Lane(job.task.lane([job]), [job]) for job in left]
            return
        if not isinstance(error, UserError):
            # This thread is not the request's task, where the log would find its id.
            request_ids = ", ".join(job.request_id for job in left if job.request_id)
            log.error("a job failed", exc_info=error, extra={"request_id": request_ids or None})
        for job in left:
            job.fail(error)


def _alike(one: Job, other: Job) -> bool:
    return one.detector is other.detector and one.task.kind == other.task.kind
