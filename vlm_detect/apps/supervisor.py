"""The replicas of a server: starts them, restarts those that die, and replaces them one by one when a run is reloaded.

    supervisor = Supervisor(spec, settings, folder, metrics)
    await supervisor.start()        # `UserError` where one ends before it is ready
    supervisor.ready                # the replicas that take requests
    await supervisor.reload()       # new processes read the files of the run again; old ones finish their requests
    await supervisor.stop()

A replica is a process (`replica.py`) that listens on a Unix socket in `folder`. It ends when this process ends, however
that happens. A replica that dies is restarted after a wait that doubles up to a minute; one that does not answer three
health checks in a row is killed first. Nothing limits how long a start may take: a model may have to be downloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import multiprocess

from vlm_detect.apps.metrics import ReplicaMetrics
from vlm_detect.apps.settings import ServerSettings
from vlm_detect.errors import UserError

log = logging.getLogger(__name__)
PROGRAM = (sys.executable, "-m", "vlm_detect.apps.replica")
STEADY_S = 60.0  # a replica that lived this long is restarted after the shortest wait
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
HEALTH_S, HEALTH_TIMEOUT_S, MISSES = 10.0, 10.0, 3
POLL_S = 0.2


class StartFailed(Exception):
    """A replica ended before it was ready; the message says why."""


@dataclass(eq=False)
class Replica:
    number: int
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient
    is_ready: bool = False
    is_retired: bool = False
    in_flight: int = 0
    reason: str | None = None  # the error that it ended with
    ready_at: float = 0.0  # of time.monotonic()
    relay: asyncio.Task[None] | None = None  # what passes its stderr on

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def answers(self, path: str) -> bool:
        try:
            return (await self.client.get(path, timeout=HEALTH_TIMEOUT_S)).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def ending(self) -> str:
        """How the process ended, for a message."""
        status = self.process.returncode
        if self.reason is None and status is not None and status < 0:
            killed = f"killed by {signal.Signals(-status).name}"
            return f"{killed}: is there enough memory?" if status == -signal.SIGKILL else killed
        return self.reason or f"exit status {status}"


class Supervisor:
    """`settings.replicas` processes of `program`; `spec` is what a replica serves, as JSON."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        settings: ServerSettings,
        folder: Path,
        metrics: ReplicaMetrics,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        assert settings.replicas is not None
        self.wanted = settings.replicas
        # A replica answers this process alone, which has checked keys and hosts.
        inside = replace(settings, host="0.0.0.0", without_key=True, api_key=None, api_keys=None, replicas=None)
        self._spec = {**spec, "settings": asdict(inside)}
        self._settings = settings
        self._folder = folder
        self._metrics = metrics
        self._program = program
        self._current: dict[int, Replica] = {}
        self._locks = [asyncio.Lock() for _ in range(self.wanted)]  # held while a replica is started
        self._reloading = asyncio.Lock()
        self._alive: set[Replica] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._waits_s: dict[int, float] = {}  # before the last restart of each
        self._sockets = itertools.count()
        metrics.replicas.labels("wanted").set(self.wanted)

    @property
    def ready(self) -> list[Replica]:
        """The replicas that take requests, the one with the fewest in flight first."""
        found = [replica for replica in self._current.values() if replica.is_ready and not replica.is_retired]
        return sorted(found, key=lambda replica: replica.in_flight)

    async def start(self) -> None:
        """Start all replicas, the first alone: what is wrong with the run is then said once."""
        await self._start_first(0)
        await asyncio.gather(*(self._start_first(number) for number in range(1, self.wanted)))

    async def _start_first(self, number: int) -> None:
        try:
            async with self._locks[number]:
                self._install(await self._launch(number))
        except StartFailed as error:
            raise UserError(f"replica {number} ended in start-up: {error}") from error

    async def reload(self) -> None:
        """Replace the replicas one by one; where a new one ends in start-up, it and the rest stay as they are."""
        async with self._reloading:
            for number in range(self.wanted):
                async with self._locks[number]:
                    old = self._current[number]
                    try:
                        new = await self._launch(number)
                    except StartFailed as error:
                        self._metrics.reloads.labels("failed").inc()
                        kept = f"{number} of {self.wanted} replicas were replaced, the others serve on as they are"
                        log.error("reload stopped: the new replica %d ended in start-up: %s; %s", number, error, kept)
                        return
                    self._install(new)
                await self._retire(old)
            self._metrics.reloads.labels("done").inc()
            log.warning("reload done: %d replicas", self.wanted)

    async def stop(self) -> None:
        """End all replicas; requests that still run have failed by then."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(self._end(replica) for replica in list(self._alive)))

    async def _launch(self, number: int) -> Replica:
        """A new process, once it takes requests."""
        socket = self._folder / f"{next(self._sockets)}.sock"
        process = await asyncio.create_subprocess_exec(
            *self._program,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which lets requests finish
            env=self._environment(),
            limit=1 << 20,
        )
        # No connection is kept: one that its replica is just closing would cost a request.
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0))
        timeout = httpx.Timeout(self._settings.deadline_s + 60, pool=None)  # a replica keeps the deadline itself
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=timeout)
        replica = Replica(number, process, client)
        self._alive.add(replica)
        replica.relay = asyncio.create_task(self._relay(replica))
        try:
            assert process.stdin is not None
            spec = {**self._spec, "number": number, "socket": str(socket)}
            with contextlib.suppress(ConnectionError):  # it has ended: seen below
                process.stdin.write(json.dumps(spec).encode() + b"\n")
                await process.stdin.drain()
            while not await replica.answers("/readyz"):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), POLL_S)
                    await asyncio.wait([replica.relay], timeout=5)
                    raise StartFailed(replica.ending)
        except BaseException:
            if process.returncode is None:
                process.kill()
            await self._end(replica)
            raise
        replica.is_ready, replica.ready_at = True, time.monotonic()
        return replica

    def _environment(self) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = {"OMP_NUM_THREADS": str(max(1, cores // self.wanted))}
        return {**threads, **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder)}

    async def _relay(self, replica: Replica) -> None:
        """Pass on what a replica writes to stderr; the error that it ends with in start-up becomes its reason."""
        assert replica.process.stderr is not None
        async for line in _lines(replica.process.stderr):
            if not replica.is_ready and line.startswith("error: "):
                replica.reason = line.removeprefix("error: ").strip()
            else:
                print(line, end="", file=sys.stderr, flush=True)

    def _install(self, replica: Replica) -> None:
        self._current[replica.number] = replica
        self._count_ready()
        watch = asyncio.create_task(self._watch(replica))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _watch(self, replica: Replica) -> None:
        """Wait until the process ends, and replace it if that was not intended."""
        misses = 0
        while replica.process.returncode is None:
            try:
                await asyncio.wait_for(replica.process.wait(), HEALTH_S)
            except TimeoutError:
                misses = 0 if await replica.answers("/healthz") else misses + 1
                if misses == MISSES and replica.process.returncode is None:
                    replica.reason = "killed, as it did not answer"
                    replica.process.kill()
        replica.is_ready = False
        self._count_ready()
        await self._end(replica)
        if replica.is_retired:
            return
        self._metrics.deaths.inc()
        if time.monotonic() - replica.ready_at > STEADY_S:
            self._waits_s.pop(replica.number, None)
        wait_s = self._next_wait_s(replica.number)
        log.error("replica %d died (%s): restarting it in %g s", replica.number, replica.ending, wait_s)
        while True:
            await asyncio.sleep(wait_s)
            async with self._locks[replica.number]:
                if self._current[replica.number] is not replica:
                    return  # a reload has replaced it
                try:
                    self._install(await self._launch(replica.number))
                    return
                except StartFailed as error:
                    wait_s = self._next_wait_s(replica.number)
                    message = "replica %d ended in start-up: %s: trying again in %g s"
                    log.error(message, replica.number, error, wait_s)

    def _next_wait_s(self, number: int) -> float:
        """The wait before a start in the place of a replica that died; it doubles until one has lived for a while."""
        self._waits_s[number] = min(2 * self._waits_s.get(number, FIRST_WAIT_S / 2), LONGEST_WAIT_S)
        return self._waits_s[number]

    async def _retire(self, replica: Replica) -> None:
        """Let the requests of a replica finish, which their deadline bounds, then end it."""
        replica.is_retired = True
        self._count_ready()
        until = time.monotonic() + self._settings.deadline_s
        while replica.in_flight and replica.is_ready and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
        await self._end(replica)

    async def _end(self, replica: Replica) -> None:
        """End a process. Its client keeps no connections, and a request may just be about to use it: it stays open."""
        self._alive.discard(replica)
        if replica.process.returncode is None:
            replica.process.terminate()
            try:
                await asyncio.wait_for(replica.process.wait(), self._settings.drain_s + 10)
            except TimeoutError:
                replica.process.kill()
                await replica.process.wait()
        multiprocess.mark_process_dead(replica.process.pid, str(self._folder))

    def _count_ready(self) -> None:
        self._metrics.replicas.labels("ready").set(len(self.ready))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a stream; one that is too long for its buffer is dropped, as the rest of it is not text."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace")
