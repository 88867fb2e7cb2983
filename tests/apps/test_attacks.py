"""A hostile client: what it sends is refused by counting, ended where it hangs, and holds nobody else up."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.apps.conftest import Running, data_url, file_bytes, make_photo, serving, until
from tests.images.test_bounds import many_scans
from vlm_detect.images import decode
from vlm_detect.images.isolated import IsolatedDecoder
from vlm_detect.infer.detector import Detector

posix = pytest.mark.skipif(sys.platform == "win32", reason="processes are not stopped there")


def address(running: Running) -> tuple[str, int]:
    host, port = running.url.removeprefix("http://").split(":")
    return host, int(port)


@contextmanager
def connected(running: Running) -> Iterator[socket.socket]:
    with socket.create_connection(address(running), timeout=60) as connection:
        yield connection


def is_healthy(running: Running) -> bool:
    return httpx.get(f"{running.url}/healthz", timeout=60).status_code == 200


def wait_for_the_end(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    found = b""
    try:
        while piece := connection.recv(1000):
            found += piece
    except ConnectionResetError:
        pass
    return found


def goes_on_until_dropped(connection: socket.socket, data: bytes, pause_s: float = 0.0) -> bool:
    """Send again and again until the other side has had enough."""
    for _ in range(10_000):
        try:
            connection.sendall(data)
        except OSError:
            return True
        time.sleep(pause_s)
    return False


# Connections


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localh"],
)
def test_headers_that_do_not_end_time_out(detector: Detector, sent: bytes) -> None:
    with serving(detector, header_timeout_s=0.3) as running, connected(running) as slow:
        slow.sendall(sent)
        found = wait_for_the_end(slow)
        assert found.startswith(b"HTTP/1.1 200 OK" if b"healthz" in sent else b"HTTP/1.1 408 Request Timeout")
        assert is_healthy(running)


def test_headers_in_small_pieces_have_no_more_time(detector: Detector) -> None:
    with serving(detector, header_timeout_s=0.5) as running, connected(running) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert goes_on_until_dropped(slow, b"X: y\r\n", pause_s=0.02)
        assert is_healthy(running)


def test_a_request_slower_than_the_header_timeout_is_answered(detector: Detector) -> None:
    with serving(detector, header_timeout_s=0.2) as running, connected(running) as client:
        client.sendall(b"POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n")
        waited = threading.Event()
        waited.wait(0.6)
        client.sendall(b"{}")
        assert client.recv(1000).startswith(b"HTTP/1.1 4")


def test_the_oldest_of_too_many_idle_connections_are_closed(detector: Detector) -> None:
    with serving(detector, max_idle_connections=5, header_timeout_s=60) as running:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert http.get("/healthz").status_code == 200
            held = [socket.create_connection(address(running), timeout=60) for _ in range(8)]
            for connection in held[:3]:
                wait_for_the_end(connection)
            assert http.get("/healthz").status_code == 200  # who has asked before is not of them
            assert is_healthy(running)
        for connection in held:
            connection.close()


def test_chunks_of_a_byte_are_refused(detector: Detector) -> None:
    head = b"POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = json.dumps({"image_url": data_url(make_photo(0, (200, 200)))}).encode()
    with serving(detector) as running:
        with connected(running) as crumbs:
            crumbs.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            assert goes_on_until_dropped(crumbs, b"1\r\nx\r\n" * 1000)
        chunks = httpx.post(
            f"{running.url}/v1/verdict", content=(body[i : i + 500] for i in range(0, len(body), 500)), timeout=60,
            headers={"content-type": "application/json"},
        )  # fmt: skip
        assert chunks.status_code == 200


def test_the_number_of_incoming_bodies_is_bounded(detector: Detector) -> None:
    head = b"POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with serving(detector, max_uploads=2) as running, connected(running) as one, connected(running) as other:
        for connection in (one, other):
            connection.sendall(head)
        until(lambda: httpx.post(f"{running.url}/v1/verdict", json={}, timeout=60).status_code == 429)
        assert is_healthy(running)
        one.close()
        until(lambda: httpx.post(f"{running.url}/v1/verdict", json={}, timeout=60).status_code == 400)


def test_a_client_that_does_not_read_its_answer_is_dropped(detector: Detector) -> None:
    asks = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(detector, write_timeout_s=0.3) as running, connected(running) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert goes_on_until_dropped(deaf, asks * 100)
        assert is_healthy(running)


def test_small_answers_are_sent_at_once(server: Running) -> None:
    with connected(server):
        until(lambda: len(server.server.server_state.connections) == 1)
        (connection,) = server.server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_websockets_are_refused(server: Running) -> None:
    with connected(server) as client:
        client.sendall(
            b"GET /v1/verdict HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 405")


def test_invalid_requests_do_not_fill_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
    for sent in (b"\0\1\2\r\n\r\n", upgrade):
        with connected(server) as client:
            client.sendall(sent)
            assert client.recv(1000).startswith(b"HTTP/1.1 ")
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


# Images


def bomb(kind: str) -> bytes:
    match kind:
        case "scans":
            return many_scans(Image.new("L", (64, 64), 128), 300)
        case "pixels":
            return file_bytes(Image.new("1", (30_000, 30_000)))
        case "tile":
            tags = struct.pack("<HHIIHHII", 322, 4, 1, 60_000, 323, 4, 1, 60_000)
            return b"II*\0\x08\0\0\0\x02\0" + tags + b"\0" * 50
        case _:
            return b"P3 2000 1000 255 " + b"1 " * 6_000_000


@pytest.mark.parametrize("kind", ["scans", "pixels", "tile", "numbers in text"])
def test_images_that_ask_for_minutes_of_work_are_refused(detector: Detector, kind: str) -> None:
    with serving(detector, decode_s=0.01) as running, httpx.Client(base_url=running.url, timeout=100) as http:
        body = {"images": [data_url(bomb(kind)), data_url(make_photo(0))]}
        hostile, good = http.post("/v1/verdict", json=body).json()["verdicts"]
        assert hostile["error"]["code"] in ("too_slow", "too_large", "unreadable", "not_an_image")
        assert good["label"]


def test_no_image_is_decoded_in_the_server_process(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("decode_here", "decode_image"):
        monkeypatch.setattr(decode, name, lambda *args, **options: pytest.fail("decoded here"))
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened here"))
    monkeypatch.setattr(base64, "b64decode", lambda *args, **options: pytest.fail("base64 here"))
    photo = file_bytes(make_photo(0))
    with serving(detector) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        for url in (data_url(photo), data_url(file_bytes(make_photo(0, (300, 300))))):
            assert http.post("/v1/verdict", json={"image_url": url}).status_code == 200
        assert http.post("/v1/verdict", files={"image": photo}).status_code == 200


def hanging(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Decoders that stop in the middle of an image, and whether one has."""
    converse, hangs = IsolatedDecoder._converse, threading.Event()

    def hang(process: Any, *args: Any) -> Any:
        os.kill(process.pid, signal.SIGSTOP)
        hangs.set()
        return converse(process, *args)

    monkeypatch.setattr(IsolatedDecoder, "_converse", staticmethod(hang))
    return hangs


@posix
def test_a_decoding_ends_at_the_requests_deadline(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(detector, deadline_s=0.5) as running, monkeypatch.context() as patch:
        hanging(patch)
        for body in ({"image_url": data_url(make_photo(0))}, {"images": [data_url(make_photo(0))] * 3}):
            late = httpx.post(f"{running.url}/v1/verdict", json=body, timeout=60)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "deadline_exceeded")
    with serving(detector) as running:
        assert is_healthy(running)


@posix
def test_a_decoding_ends_when_its_client_disconnects(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(detector, decoders=1) as running:
        with monkeypatch.context() as patch:
            hangs = hanging(patch)
            client = HTTPConnection(*address(running), timeout=60)
            body = json.dumps({"image_url": data_url(make_photo(0))})
            client.request("POST", "/v1/verdict", body, {"content-type": "application/json"})
            assert hangs.wait(60)
            client.close()
            gone = 'requests_total{route="/v1/verdict",status="499"} 1.0'
            until(lambda: gone in httpx.get(f"{running.url}/metrics").text)
        again = {"image_url": data_url(make_photo(0))}
        assert httpx.post(f"{running.url}/v1/verdict", json=again, timeout=60).status_code == 200


@posix
def test_a_stopping_server_does_not_wait_for_a_decoder(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = hanging(monkeypatch)
    with serving(detector, drain_s=1) as running, ThreadPoolExecutor(1) as pool:
        body = {"image_url": data_url(make_photo(0))}
        answer = pool.submit(httpx.post, f"{running.url}/v1/verdict", json=body, timeout=60)
        assert hangs.wait(60)
        running.server.should_exit = True
        with pytest.raises((httpx.HTTPError, AssertionError)):
            assert answer.result().status_code == 200


@posix
def test_the_number_of_images_waiting_for_a_decoder_is_bounded(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(detector, decoders=1, max_jobs=1, deadline_s=30, drain_s=1) as running, ThreadPoolExecutor(3) as pool:
        with monkeypatch.context() as patch:
            hangs = hanging(patch)
            body = {"image_url": data_url(make_photo(0))}
            asks = [pool.submit(httpx.post, f"{running.url}/v1/verdict", json=body, timeout=60) for _ in range(3)]
            assert hangs.wait(60)
            until(lambda: any(ask.done() for ask in asks))
            (full,) = [ask.result() for ask in asks if ask.done()]
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert is_healthy(running)
        for decoder in running.app.state.service._decoding._all:  # type: ignore[attr-defined]
            decoder.stop()
        until(lambda: all(ask.done() for ask in asks))
