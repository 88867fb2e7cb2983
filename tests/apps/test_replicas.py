"""A server with two replicas on loopback: over a reload, and over the death of one, each request gets its result or a
503 with Retry-After. The replicas are processes without a model (`fake_replica.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx
from prometheus_client import CollectorRegistry

from vlm_detect.apps import supervisor as supervising
from vlm_detect.apps.connections import open_socket
from vlm_detect.apps.front import run_front
from vlm_detect.apps.keys import Keys
from vlm_detect.apps.metrics import ReplicaMetrics, add_sum
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.apps.supervisor import Supervisor
from vlm_detect.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="replicas need Unix sockets")
PROGRAM = (sys.executable, str(Path(__file__).with_name("fake_replica.py")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits; and SIGTERM, which uvicorn passes on when it has drained, does not end the tests."""
    monkeypatch.setattr(supervising, "FIRST_WAIT_S", 0.1)
    monkeypatch.setattr(supervising, "POLL_S", 0.05)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass
class Front:
    http: httpx.AsyncClient
    supervisor: Supervisor
    run: Path
    answers: list[httpx.Response] = field(default_factory=list)

    async def ask(self) -> httpx.Response:
        answer = await self.http.post("/v1/verdict?a=b", json={"n": len(self.answers)})
        self.answers.append(answer)
        return answer

    async def until_ready(self) -> None:
        await until(lambda: len(self.supervisor.ready) == self.supervisor.wanted)

    async def figure(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (.*)$", (await self.http.get("/metrics")).text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def until_figure(self, name: str, value: float) -> None:
        """A request is counted when its response has been sent: a moment after its client has it."""
        async with asyncio.timeout(120):
            while await self.figure(name) != value:
                await asyncio.sleep(0.05)

    async def reload(self, content: str, outcome: str) -> None:
        """Change the run, ask for a reload as an operator does, and wait for its end."""
        self.run.write_text(content, encoding="utf-8")
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until_figure(f'vlm_detect_reloads_total{{outcome="{outcome}"}}', 1)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, content: str = "one", **more: object) -> AsyncIterator[Front]:
    settings = ServerSettings(**{"replicas": 2, "drain_s": 20, **more})
    (run := tmp_path / "run").write_text(content, encoding="utf-8")
    registry = CollectorRegistry()
    # A Unix socket's path is limited to about 100 characters.
    with tempfile.TemporaryDirectory() as folder, open_socket("127.0.0.1", 0) as bound:
        supervisor = Supervisor(
            {"models": [[str(run), None]]}, settings, Path(folder), ReplicaMetrics(registry), PROGRAM
        )
        add_sum(registry, Path(folder))
        keys = Keys.from_settings(settings)
        served = asyncio.create_task(run_front(supervisor, "fake", settings, keys, registry, bound))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60) as http:
                front = Front(http, supervisor, run)
                await until(lambda: served.done() or len(supervisor.ready) == supervisor.wanted)
                if not served.done():
                    yield front
        finally:
            if not served.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await served


@contextlib.asynccontextmanager
async def asking(front: Front, clients: int = 4) -> AsyncIterator[None]:
    """Clients that ask without a pause; none may see a connection that breaks."""
    stopping = False

    async def client() -> None:
        while not stopping:
            await front.ask()

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield
    finally:
        stopping = True
        await asyncio.gather(*tasks)


def test_a_reload_and_a_death_under_load(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as front:
            async with asking(front):
                await until(lambda: len(front.answers) >= 20)
                await front.reload("two", "done")
                n_reloaded = len(front.answers) + 4  # those in flight may have the old answer
                await until(lambda: len(front.answers) >= n_reloaded + 20)
            # A reload costs no request, and lets the old run answer what it has begun.
            assert Counter(answer.status_code for answer in front.answers) == {200: len(front.answers)}
            runs = [answer.json()["run"] for answer in front.answers]
            assert set(runs[:20]) == {"one"}
            assert set(runs[n_reloaded:]) == {"two"}
            assert len({answer.json()["pid"] for answer in front.answers}) == 4

            async with asking(front):
                victim = front.supervisor.ready[0]
                victim.process.send_signal(signal.SIGSTOP)
                n_stopped = len(front.answers)
                await until(lambda: len(front.answers) >= n_stopped + 20)  # what it had sent before has arrived
                assert victim.in_flight > 0
                victim.process.kill()
                await until(lambda: not victim.is_ready)
                await front.until_ready()
                n_restarted = len(front.answers) + 4
                await until(lambda: len(front.answers) >= n_restarted + 20)
            lost = [answer for answer in front.answers if answer.status_code != 200]
            assert {(a.status_code, a.json()["error"]["code"]) for a in lost} == {(503, "replica_lost")}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in lost)
            assert {answer.status_code for answer in front.answers[n_restarted:]} == {200}
            assert await front.figure("vlm_detect_replica_deaths_total") == 1
            # Counters of replaced and dead replicas are kept.
            n_good = len(front.answers) - len(lost)
            assert n_good <= await front.figure('vlm_detect_verdicts_total{label="real"}') <= n_good + len(lost)
            counted = 'vlm_detect_requests_total{{route="{}",status="{}"}}'
            await front.until_figure(counted.format("/v1/verdict", 200), n_good)
            await front.until_figure(counted.format("other", 503), len(lost))

            await front.reload("broken", "failed")
            assert (await front.ask()).json()["run"] == "two"
            assert await front.figure('vlm_detect_replicas{state="ready"}') == 2

    asyncio.run(scenario())


def test_what_is_passed_on_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[a]\nkey = "secret"\nlimit = "5/hour"\n', encoding="utf-8")

    async def scenario() -> None:
        async with serving(tmp_path, api_keys=str(tmp_path / "keys.toml")) as front:
            assert (await front.http.post("/v1/verdict")).status_code == 401
            front.http.headers.update({"authorization": "Bearer secret", "x-request-id": "mine", "x-other": "1"})
            image = {"image_url": "data:image/png;base64," + "A" * 100_000}
            whole = await front.http.post("/v1/verdict", json=image)
            assert json.loads(whole.json()["body"]) == image
            found = await front.ask()
            assert found.headers["x-request-id"] == found.json()["request_id"] == "mine"
            assert "nosniff" in found.headers["x-content-type-options"]
            assert "x-vlm-detect-route" not in found.headers
            assert found.json()["body"] == '{"n":0}'
            assert not {"authorization", "x-other"} & set(found.json()["headers"])
            assert (await front.http.get("/../etc/passwd")).status_code == 404
            assert (await front.http.post("/healthz")).status_code == 405
            answers = await asyncio.gather(*(front.ask() for _ in range(6)))
            # Both replicas answer, within one limit: three requests with the key went before.
            assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 4}
            assert len({answer.json()["pid"] for answer in answers if answer.status_code == 200}) == 2

            assert (await front.http.get("/readyz")).json() == {"status": "ready", "replicas": 2, "ready": 2}
            victims = front.supervisor.ready
            for victim in victims:
                victim.process.kill()
            await until(lambda: not any(victim.is_ready for victim in victims))
            down = await front.http.get("/readyz")
            assert (down.status_code, down.json()["ready"]) == (503, 0)
            assert (await front.http.get("/healthz")).status_code == 200
            await front.until_ready()

    asyncio.run(scenario())


def test_a_stream_whose_replica_dies_ends_with_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, replicas=1) as front, front.http.stream("GET", "/v1/stream") as answer:
            assert answer.status_code == 200
            events = (json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line)
            first = await anext(events)
            os.kill(first["pid"], signal.SIGKILL)
            last = [event async for event in events][-1]
            assert (last["error"]["code"], last["completed"]) == ("replica_lost", True)

    asyncio.run(scenario())


def test_a_replica_that_hangs_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "HEALTH_S", 0.1)
    monkeypatch.setattr(supervising, "HEALTH_TIMEOUT_S", 0.5)

    async def scenario() -> None:
        async with serving(tmp_path, replicas=1) as front:
            first = front.supervisor.ready[0]
            first.process.send_signal(signal.SIGSTOP)
            await until(lambda: not first.is_ready)
            await front.until_ready()
            assert (await front.ask()).status_code == 200

    asyncio.run(scenario())


def test_a_replica_that_ends_in_start_up_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, "broken"):
            pytest.fail("it is not ready")

    with pytest.raises(UserError, match=r"^replica 0 ended in start-up: the run is broken: give another$"):
        asyncio.run(scenario())
    assert capfd.readouterr().err == "a line of a library\n"


def test_the_number_of_replicas_is_checked() -> None:
    with pytest.raises(UserError, match="--replicas 0: give 1 or more"):
        check_settings(ServerSettings(replicas=0))


def test_the_wait_before_a_restart_doubles(tmp_path: Path) -> None:
    metrics = ReplicaMetrics(CollectorRegistry())
    waits = Supervisor({}, ServerSettings(replicas=1), tmp_path, metrics)
    found = [waits._next_wait_s(0) for _ in range(12)]
    assert found[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert found[-1] == supervising.LONGEST_WAIT_S
