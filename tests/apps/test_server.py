"""The server as a process among others: batches, bounds, keys, deadlines, clients that go, and its end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest
import torch

from tests.apps.conftest import Running, data_url, make_photo, serving, until
from vlm_detect.apps.connections import open_socket
from vlm_detect.apps.errors import Busy, Expired, Stopped
from vlm_detect.apps.service import Service
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.apps.tasks import Judge, Write
from vlm_detect.apps.worker import Done, Failed, Job, Worker
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.picture import Picture


def query(photo_seed: int = 0, **more: object) -> dict:
    return {"image_url": data_url(make_photo(photo_seed)), "question": "What is it?", **more}


# The worker


class Collected:
    """What a job ended with."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.end: Done | Failed | None = None
        self.ended = threading.Event()

    def __call__(self, event) -> None:
        if isinstance(event, str):
            self.pieces.append(event)
        else:
            self.end = event
            self.ended.set()


def submit(worker: Worker, detector: Detector, task, seeds, deadline: float = float("inf")) -> list[Collected]:
    ends = [Collected() for _ in seeds]
    worker.submit(
        [Job(task, detector, Picture(make_photo(s)), end, deadline) for s, end in zip(seeds, ends, strict=True)]
    )
    return ends


def write(question: str, tokens: int = 6) -> Write:
    return Write(lambda detector: ("", detector.question_prompt(question)), tokens)


def test_jobs_of_one_kind_make_one_batch_and_answer_as_if_alone(detector: Detector) -> None:
    batches: list[tuple[str, int]] = []
    worker = Worker(observe=lambda kind, size: batches.append((kind, size)))
    seeds = range(5)
    verdicts = submit(worker, detector, Judge(), seeds)
    answers = submit(worker, detector, write("What?"), seeds)
    for end in (*verdicts, *answers):
        assert end.ended.wait(30)
    worker.stop()
    assert batches == [("verdict", 5), ("text", 5)]
    for seed, verdict, answer in zip(seeds, verdicts, answers, strict=True):
        photo = make_photo(seed)
        assert isinstance(verdict.end.value, Verdict)
        assert verdict.end.value.p_fake == pytest.approx(detector(photo).p_fake, abs=1e-5)
        assert answer.end.value.text == "".join(answer.pieces) == detector.ask(photo, "What?", 6)


def test_a_bad_job_fails_alone(detector: Detector) -> None:
    worker = Worker()
    ends = [Collected() for _ in range(3)]
    tasks = [write("What?"), write("x" * 600), write("What?")]
    worker.submit(
        [Job(t, detector, Picture(make_photo(i)), end) for i, (t, end) in enumerate(zip(tasks, ends, strict=True))]
    )
    assert all(end.ended.wait(30) for end in ends)
    assert [type(end.end) for end in ends] == [Done, Failed, Done]
    assert isinstance(ends[1].end.error, UserError)
    worker.stop()


def test_a_batch_that_fails_is_tried_one_by_one(detector: Detector) -> None:
    """The batch of three runs out of memory, so does the second image alone; later batches are smaller."""
    detector = Detector(detector.engine.vlm)

    class Fragile:
        kind = "fragile"

        def lane(self, jobs):
            if len(jobs) > 1 or jobs[0].picture.image.width == 7:
                raise torch.OutOfMemoryError("CUDA out of memory")
            jobs[0].done("fine")
            yield

    worker = Worker()
    ends = [Collected() for _ in range(3)]
    sizes = [(5, 5), (7, 5), (9, 5)]
    worker.submit([Job(Fragile(), detector, Picture(make_photo(0, s)), e) for s, e in zip(sizes, ends, strict=True)])
    assert all(end.ended.wait(30) for end in ends)
    assert [type(end.end) for end in ends] == [Done, Failed, Done]
    assert detector.engine.batch_images == 1
    worker.stop()


def test_a_failed_accelerator_ends_the_thread(detector: Detector) -> None:
    """It fails every later job too: liveness has to say so, and no job may wait for ever."""

    class Broken:
        kind = "broken"

        def lane(self, jobs):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`")
            yield

    worker = Worker(max_batch=1, max_lanes=1)
    ends = submit(worker, detector, Broken(), [0, 1])
    assert all(end.ended.wait(30) for end in ends)
    assert [type(end.end.error) for end in ends] == [Stopped, Stopped]
    until(lambda: not worker.is_alive)
    with pytest.raises(Stopped):
        submit(worker, detector, Judge(), [2])


def test_the_queue_is_bounded_in_jobs_and_pixels(detector: Detector) -> None:
    gate = Gate()
    worker = Worker(max_jobs=3, max_pixels=2000)
    submit(worker, detector, gate, [0])
    with pytest.raises(Busy) as busy:
        submit(worker, detector, Judge(), [1, 2, 3])  # all or none: there is room for two
    assert busy.value.retry_after_s >= 1
    assert worker.n_held == 1
    submit(worker, detector, gate, [1, 2])
    with pytest.raises(Busy):
        submit(worker, detector, Judge(), [3])
    gate.opened.set()
    until(lambda: worker.n_held == 0)
    big = Job(gate, detector, Picture(make_photo(0, (40, 40))), Collected())
    gate.opened.clear()
    worker.submit([big])
    with pytest.raises(Busy):
        worker.submit([Job(gate, detector, Picture(make_photo(0, (40, 40))), Collected())])
    gate.opened.set()
    worker.stop()
    with pytest.raises(Stopped):
        submit(worker, detector, Judge(), [0])


class Gate:
    """Keeps the worker until it is opened."""

    kind = "gate"

    def __init__(self) -> None:
        self.opened = threading.Event()

    def lane(self, jobs):
        while not self.opened.wait(0.01):
            yield
        for job in jobs:
            job.done(None)


@pytest.mark.usefixtures("endless")
def test_a_verdict_need_not_wait_for_a_long_answer(detector: Detector) -> None:
    worker = Worker()
    (long,) = submit(worker, detector, write("What?"), [0])
    until(lambda: len(long.pieces) > 2)
    (verdict,) = submit(worker, detector, Judge(), [1])
    assert verdict.ended.wait(30)
    assert not long.ended.is_set()
    worker.stop()
    assert isinstance(long.end.error, Stopped)


@pytest.mark.usefixtures("endless")
def test_deadlines_and_cancelled_jobs_end_early(detector: Detector) -> None:
    worker = Worker()
    (late,) = submit(worker, detector, write("What?"), [0], deadline=time.monotonic() + 0.15)
    assert late.ended.wait(30)
    assert isinstance(late.end.error, Expired)
    end = Collected()
    job = Job(write("What?"), detector, Picture(make_photo(0)), end)
    worker.submit([job])
    until(lambda: len(end.pieces) > 2)
    job.cancel()
    until(lambda: worker.n_held == 0)
    assert end.end is None
    worker.stop()


# Over HTTP


def test_requests_that_arrive_together_share_batches(detector: Detector) -> None:
    with serving(detector) as running, ThreadPoolExecutor(8) as pool, httpx.Client(base_url=running.url) as http:
        expected = [detector(make_photo(i)).p_fake for i in range(8)]
        bodies = [{"image_url": data_url(make_photo(i))} for i in range(8)]
        running.worker.max_lanes = 1  # what comes behind the gate waits
        submit(running.worker, detector, gate := Gate(), [0])
        answers = [pool.submit(http.post, "/v1/verdict", json=body, timeout=60) for body in bodies]
        until(lambda: running.worker.n_held == 9)
        gate.opened.set()
        assert [a.result().json()["p_fake"] for a in answers] == pytest.approx(expected, abs=1e-5)
        figures = http.get("/metrics").text
        assert 'batch_size_sum{kind="verdict"} 8.0' in figures
        assert 'batch_size_count{kind="verdict"} 1.0' in figures


def test_a_full_queue_answers_429_and_recovers(detector: Detector) -> None:
    with serving(detector, max_jobs=1) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        gate = Gate()
        submit(running.worker, detector, gate, [0])
        refused = http.post("/v1/query", json=query())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        gate.opened.set()
        until(lambda: running.worker.n_held == 0)
        assert http.post("/v1/query", json=query()).status_code == 200


def test_a_deadline_is_a_503(detector: Detector) -> None:
    with serving(detector, deadline_s=0.2) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        running.worker.max_lanes = 1  # what comes behind the gate waits
        submit(running.worker, detector, (gate := Gate()), [0])
        answer = threading.Thread(target=lambda: found.append(http.post("/v1/query", json=query())))
        found: list[httpx.Response] = []
        answer.start()
        answer.join(30)
        gate.opened.set()
        assert (found[0].status_code, found[0].json()["error"]["code"]) == (503, "deadline_exceeded")
        assert "retry-after" in found[0].headers


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnected_client_cancels_its_job(
    detector: Detector, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()
    caplog.clear()  # of what other tests left
    with serving(detector) as running:
        client = HTTPConnection(running.url.removeprefix("http://"), timeout=60)
        body = json.dumps(query(stream=stream))
        client.request("POST", "/v1/query", body, {"content-type": "application/json"})
        until(lambda: running.worker.n_held == 1)
        if stream:
            assert client.getresponse().readline().startswith(b"data: ")
        client.close()
        until(lambda: running.worker.n_held == 0)
        counted = f'requests_total{{route="/v1/query",status="{200 if stream else 499}"}} 1.0'
        until(lambda: counted in httpx.get(f"{running.url}/metrics").text)
    gc.collect()  # then asyncio logs what failed unseen
    assert not caplog.records


def test_a_stopping_server_finishes_running_jobs(detector: Detector) -> None:
    with serving(detector) as running, ThreadPoolExecutor(1) as pool:
        running.worker.max_lanes = 1
        submit(running.worker, detector, (gate := Gate()), [0])
        answer = pool.submit(httpx.post, f"{running.url}/v1/query", json=query(), timeout=60)
        until(lambda: running.worker.n_held == 2)
        running.server.should_exit = True
        until(lambda: not listens(running.url))
        gate.opened.set()
        assert answer.result().status_code == 200


def listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def test_keys(detector: Detector) -> None:
    with serving(detector, api_key="secret") as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert http.get("/healthz").status_code == http.get("/").status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret"},
            {"x-moondream-auth": b"\xfc"},
        ):
            refused = http.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for headers in ({"authorization": "Bearer secret"}, {"x-moondream-auth": "secret"}):
            assert http.get("/v1/models", headers=headers).status_code == 200
        figures = http.get("/metrics", headers={"x-moondream-auth": "secret"}).text
        assert 'requests_total{route="other",status="401"} 4.0' in figures


def test_pages_of_other_sites_are_refused(server: Running) -> None:
    with httpx.Client(base_url=server.url) as http:
        for headers in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://["},
            {"host": "evil.example"},
            {"host": "127.evil.example"},
        ):
            assert http.get("/v1/models", headers=headers).status_code == 403
        assert http.get("/v1/models", headers={"origin": server.url}).status_code == 200
        port = server.url.rsplit(":", 1)[1]
        assert http.get("/v1/models", headers={"host": f"localhost:{port}"}).status_code == 200


def test_bodies_are_bounded_before_they_are_parsed(detector: Detector) -> None:
    with serving(detector, max_body_bytes=1000) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert http.post("/v1/query", content=b"x" * 1001).status_code == 413
        chunked = http.post("/v1/query", content=(b"x" * 100 for _ in range(20)))
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
    with serving(detector, body_timeout_s=0.3) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nx")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_images_are_bounded_before_they_are_decoded(detector: Detector) -> None:
    with serving(detector, max_pixels=599) as running:
        answer = httpx.post(f"{running.url}/v1/verdict", json={"image_url": data_url(make_photo(0))}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_large")


def test_the_images_of_a_request_are_bounded_together(detector: Detector) -> None:
    body = {"images": [data_url(make_photo(i)) for i in range(3)]}  # of 600 pixels each
    for settings, message in [
        ({"max_jobs": 2}, "3 images, at most 2 per request: send several requests"),
        ({"max_held_pixels": 1500}, "the images have more than 1500 pixels together: send several requests"),
    ]:
        with serving(detector, **settings) as running:
            refused = httpx.post(f"{running.url}/v1/verdict", json=body, timeout=60)
            assert (refused.status_code, refused.json()["error"]["message"]) == (413, message)


def test_one_request_at_a_time_decodes_many_images(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[asyncio.Task | None] = []
    decode = Service.picture

    async def noted(self: Service, source: str | bytes, param: str = "image_url") -> Picture:
        order.append(asyncio.current_task())
        await asyncio.sleep(0.02)  # in which the other request would go on
        return await decode(self, source, param)

    monkeypatch.setattr(Service, "picture", noted)
    body = {"images": [data_url(make_photo(i)) for i in range(4)]}
    with serving(detector) as running, ThreadPoolExecutor(2) as pool:
        running.worker.max_lanes = 0  # both are there before either is answered
        answers = [pool.submit(httpx.post, f"{running.url}/v1/verdict", json=body, timeout=60) for _ in range(2)]
        until(lambda: running.worker.n_held == 8)
        running.worker.max_lanes = 4
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert order == [order[0]] * 4 + [order[4]] * 4


def test_nothing_is_decoded_for_a_disconnected_client(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, decoded, opened = [], [], threading.Event()
    decode, find = Service.picture, Service.detector

    async def held(self: Service, source: str | bytes, param: str = "image_url") -> Picture:
        decoded.append(source)
        while not opened.is_set():
            await asyncio.sleep(0.01)
        return await decode(self, source, param)

    def noted(self: Service, name: str | None) -> Detector:  # just before a request waits for its turn
        arrived.append(name)
        return find(self, name)

    monkeypatch.setattr(Service, "picture", held)
    monkeypatch.setattr(Service, "detector", noted)
    first, second = ([data_url(make_photo(i)) for i in pair] for pair in ((0, 1), (2, 3)))
    with serving(detector) as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{running.url}/v1/verdict", json={"images": first}, timeout=60)
        until(lambda: len(decoded) == 1)
        client = HTTPConnection(running.url.removeprefix("http://"), timeout=60)
        client.request("POST", "/v1/verdict", json.dumps({"images": second}), {"content-type": "application/json"})
        until(lambda: len(arrived) == 2)
        client.close()
        opened.set()
        assert answer.result().status_code == 200
        counted = 'requests_total{route="/v1/verdict",status="499"} 1.0'
        until(lambda: counted in httpx.get(f"{running.url}/metrics").text)
    assert len(decoded) == len(first)


def test_two_models_answer_by_name(detector: Detector, model_folder, tmp_path) -> None:
    import shutil

    shutil.copytree(model_folder, tmp_path / "other")
    other = Detector(str(tmp_path / "other"))
    with serving(detector, other) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        names = [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert names == [detector.name, other.name]
        body = {"image_url": data_url(make_photo(0))}
        found = [http.post("/v1/verdict", json={**body, "model": name}).json()["model"] for name in names]
        assert found == names


# Starting


def test_a_port_in_use_is_one_clear_line() -> None:
    with open_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use by another program: give another"):
            open_socket("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot be used"):
        open_socket("192.0.2.1", 0)


def test_other_addresses_than_loopback_need_a_key() -> None:
    with pytest.raises(UserError, match="opens the server to the network: give --api_key"):
        check_settings(ServerSettings(host="0.0.0.0"))
    with pytest.raises(UserError, match="is empty"):
        check_settings(ServerSettings(api_key=" "))
    for key in ("schlüssel", "x ", "a\nb"):
        with pytest.raises(UserError, match="cannot be sent in a header"):
            check_settings(ServerSettings(api_key=key))
    check_settings(ServerSettings(host="0.0.0.0", api_key="x"))
    check_settings(ServerSettings(host="0.0.0.0", without_key=True))
    check_settings(ServerSettings(host="127.0.0.2"))
    with pytest.raises(UserError, match="opens the server"):
        check_settings(ServerSettings(host="127.example.org"))
