"""A small OpenAI-compatible server in a thread: answers by a rule, and fails on request."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from PIL import Image

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class FakeEndpoint(ThreadingHTTPServer):
    """Says "Fake" of red images. `failures` are (status, message) of the next requests; `refused` options give 400."""

    def __init__(self, *, logprobs: bool = True, refused: tuple[str, ...] = (), key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.logprobs, self.refused, self.key = logprobs, refused, key
        self.failures: deque[tuple[int, str]] = deque()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def refusal(self, request: dict[str, Any], key: str) -> tuple[int, str] | None:
        with self.lock:
            self.requests.append(request)
            if self.failures:
                return self.failures.popleft()
        if self.key and key != f"Bearer {self.key}":
            return 401, "wrong key"
        if request["model"] != "fake-vlm":
            return 404, "no such model"
        for name in self.refused:
            if name in request:
                other = "; use max_completion_tokens" if name == "max_tokens" else ""
                return 400, f"unsupported parameter: {name}{other}"
        return None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        picture, text = request["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        red = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        if "A:" in text["text"]:
            lines = [line for line in text["text"].splitlines() if line[1:2] == ":"]
            said = next((line[0] for line in lines if "hand" in line), "A")
            rest = [letter for letter in "ABCD" if letter != said]
        else:
            said, rest = ("Fake", ["Real"]) if red else ("Real", ["Fake"])
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": said},
        }
        if self.logprobs and request.get("logprobs"):
            top = [(said, math.log(0.8)), *((word, math.log(0.1)) for word in rest), (" the", math.log(0.02))]
            entries = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
            choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "fake-vlm", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        refusal = self.server.refusal(request, self.headers.get("authorization", ""))
        status, body = (
            (refusal[0], {"error": {"message": refusal[1]}}) if refusal else (200, self.server.answer(request))
        )
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """`server`, answering in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def fake_endpoint(**options: Any) -> Iterator[FakeEndpoint]:
    with serving(FakeEndpoint(**options)) as server:
        yield server
