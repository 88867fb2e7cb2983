"""A small server of `/v1/images/generations` and `/v1/images/edits` in a thread, which fails on request."""

from __future__ import annotations

import base64
import email
import email.policy
import io
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from tests.infer.fake_endpoint import serving


def png_of(size: tuple[int, int], seed: int = 0) -> bytes:
    """Noise: never blank, and near no other image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def answer_of(data: bytes) -> bytes:
    """The body of an answer with this image file."""
    return json.dumps({"created": 0, "data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()


class FakeImageEndpoint(ThreadingHTTPServer):
    """`answers` are (status, body, headers) of the next requests; a request with a field of `refused` gets a 400;
    `delay_s` precedes each answer, `pause_s` each kilobyte of it."""

    def __init__(self, *, refused: tuple[str, ...] = (), delay_s: float = 0.0, pause_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refused, self.delay_s, self.pause_s = refused, delay_s, pause_s
        self.answers: deque[tuple[int, bytes, dict[str, str]]] = deque()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next(self, status: int, body: bytes, times: int = 1, **headers: str) -> None:
        """Answer the next requests so."""
        self.answers.extend([(status, body, {name.replace("_", "-"): text for name, text in headers.items()})] * times)

    def answer(self, route: str, request: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        self.requests.append((route, request))
        time.sleep(self.delay_s)
        if self.answers:
            return self.answers.popleft()
        for name in self.refused:
            if name in request:
                error = {"message": f"Unknown parameter: '{name}'.", "param": name, "code": "unknown_parameter"}
                return 400, json.dumps({"error": error}).encode(), {}
        width, height = map(int, request["size"].split("x"))
        return 200, answer_of(png_of((width, height), len(self.requests))), {}


class _Handler(BaseHTTPRequestHandler):
    server: FakeImageEndpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.headers.append({name.lower(): text for name, text in self.headers.items()})
        kind = self.headers["content-type"]
        request = json.loads(body) if kind == "application/json" else _form(kind, body)
        status, data, headers = self.server.answer(self.path, request)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status in (429, 500, 503):
            self.send_header("retry-after-ms", "1")
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        for start in range(0, len(data), 1024):
            time.sleep(self.server.pause_s)
            try:
                self.wfile.write(data[start : start + 1024])
            except OSError:  # the client has left
                return

    def log_message(self, *_: Any) -> None:
        pass


def _form(kind: str, body: bytes) -> dict[str, Any]:
    """The fields of a multipart form: bytes of files, text of others."""
    message = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        data = part.get_payload(decode=True)
        name = str(part.get_param("name", header="content-disposition"))
        fields[name] = data if part.get_filename() else data.decode()
    return fields


@contextmanager
def fake_image_endpoint(**options: Any) -> Iterator[FakeImageEndpoint]:
    with serving(FakeImageEndpoint(**options)) as server:
        yield server
