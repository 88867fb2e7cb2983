"""One thread that owns the models: what arrives together is computed together.

    worker = Worker(max_jobs=64)
    worker.submit([Job(task, detector, picture, on_event, deadline)])     # Busy where the queue is full

Waiting jobs of one kind and model become a lane: one batch through the engine. Lanes take turns, a step each (a token
of every answer, a batch of hidden regions), so that a verdict need not wait for a long answer that began before it.
Events (`str` pieces of text, then one `Done` or `Failed`) are handed to a job's `on_event` from this thread.
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

from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector, Picture

log = logging.getLogger(__name__)
GATHER_S = 0.004  # how long an idle worker waits for company after the first job


class Busy(Exception):
    """The queue is full; `retry_after_s` is about when there will be room."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests are waiting: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Expired(Exception):
    """The job's deadline passed before it was done."""


class Stopped(Exception):
    """The server is going down."""


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Failed:
    error: Exception


Event = str | Done | Failed


class Task(Protocol):
    """What is wanted of an image; equal `kind`s may share a batch."""

    kind: str

    def lane(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Works on `jobs`, whose tasks are all of this kind, and gives way between steps."""


@dataclass(eq=False)
class Job:
    """`deadline` is a time of `time.monotonic()`; a question without an image has no picture."""

    task: Any
    detector: Detector
    picture: Picture | None
    on_event: Callable[[Event], None]
    deadline: float = math.inf
    open: bool = field(default=True, init=False)  # nobody has ended it yet
    begun: bool = field(default=False, init=False)  # some of its text was sent

    @property
    def image(self) -> Image.Image | None:
        return None if self.picture is None else self.picture.image

    @property
    def seen(self) -> Picture:
        """The picture of a task that cannot do without one."""
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
        """Nobody waits any more: the worker drops it at its next step."""
        self.open = False

    def wanted(self) -> bool:
        """Whether it is still worth working on; fails it where its deadline has passed."""
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
    """`max_jobs` and `max_pixels` bound what waits and runs, `max_batch` jobs make a lane, `max_lanes` run at a time.

    `observe(kind, size)` is told of every lane that starts.
    """

    def __init__(
        self,
        *,
        max_jobs: int = 64,
        max_pixels: int = 400_000_000,
        max_batch: int = 16,
        max_lanes: int = 4,
        observe: Callable[[str, int], None] = lambda kind, size: None,
    ) -> None:
        self.max_jobs = max_jobs
        self.max_pixels = max_pixels
        self.max_batch = max_batch
        self.max_lanes = max_lanes
        self._observe = observe
        self._waiting: deque[Job] = deque()
        self._running: list[_Lane] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_a_job = 0.1
        self._thread = threading.Thread(target=self._run, name="vlm-detect-worker", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of `jobs` or none: `Busy` where there is no room, `Stopped` where no more are taken."""
        with self._changed:
            if self._stopping:
                raise Stopped("the server is shutting down")
            held = self._held()
            pixels = sum(job.pixels for job in (*held, *jobs))
            if len(held) + len(jobs) > self.max_jobs or (held and pixels > self.max_pixels):
                raise Busy(max(1, math.ceil(len(held) * self._seconds_a_job)))
            self._waiting.extend(jobs)
            self._changed.notify()

    @property
    def n_held(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            return len(self._held())

    def _held(self) -> list[Job]:
        return [*self._waiting, *(job for lane in self._running for job in lane.jobs)]

    def stop(self, timeout_s: float = 10) -> None:
        """Take no more jobs, fail those that are left, end the thread."""
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

    def _start_lanes(self) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.wanted())
            while self._waiting and len(self._running) < self.max_lanes:
                first = self._waiting[0]
                jobs = [job for job in self._waiting if _alike(job, first)][: self.max_batch]
                self._waiting = deque(job for job in self._waiting if job not in jobs)
                self._observe(first.task.kind, len(jobs))
                self._running.append(_Lane(first.task.lane(jobs), jobs))

    def _step(self, lane: _Lane) -> None:
        try:
            if sum(job.wanted() for job in lane.jobs):  # each of them is to notice its deadline
                next(lane.steps)
                return
        except StopIteration:
            pass
        # Whatever a model raises must end these jobs and not the thread that all the others wait for.
        except Exception as error:
            self._part_or_fail(lane.jobs, error)
        with self._changed:
            self._running.remove(lane)
            spent = (time.perf_counter() - lane.since) / len(lane.jobs)
            self._seconds_a_job += 0.1 * (spent - self._seconds_a_job)

    def _part_or_fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """One bad job must not take those beside it along: a batch that failed is tried again one by one."""
        left = [job for job in jobs if job.open]
        if len(jobs) > 1 and not any(job.begun for job in left):
            with self._changed:
                self._running += [_Lane(job.task.lane([job]), [job]) for job in left]
            return
        if not isinstance(error, UserError):
            log.error("a job failed", exc_info=error)
        for job in left:
            job.fail(error)


def _alike(one: Job, other: Job) -> bool:
    return one.detector is other.detector and one.task.kind == other.task.kind
