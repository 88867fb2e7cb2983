"""Middleware in front of every route: authentication, limits on uploads, and the headers of every response.

- Without a key the server listens on loopback only, and web pages of other sites must not reach it: requests whose Host
  is not a name of this machine (DNS rebinding) or whose Origin is another site are refused.
- With keys every API route requires one, as `Authorization: Bearer KEY` or `X-Moondream-Auth: KEY`, within its limit.
- A body is read completely before any route sees it, within limits of size, time, and the total of all bodies; its
  images are taken out before anything parses it (`bodies.py`).
- An unexpected error is logged, and answered in the shape of all errors.

No CORS header is ever sent, so that browsers show the answers to the server's own page alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_detect.apps.asked import Asked, answer_in_this_task
from vlm_detect.apps.bodies import Content, open_body
from vlm_detect.apps.errors import ApiError, as_api_error
from vlm_detect.apps.keys import Keys
from vlm_detect.apps.settings import ServerSettings, is_loopback

log = logging.getLogger(__name__)
OPEN_PATHS = ("/healthz", "/readyz", "/")  # need no key, and neither do the page's own files
_LARGE_BYTES = 1 << 16
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around the whole application; without `keys` any client may use it.

    With `opens_bodies` false a body reaches the application as it came, for a replica to open.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: Keys | None, *, opens_bodies: bool = True) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.opens_bodies = opens_bodies
        self._held_bytes = 0
        self._uploads = 0
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        body: bytearray | None = None
        content = Content()
        held = 0
        try:
            self._check(scope)
            body = await self._read_body(scope, receive)
            if body is None:
                return
            held = len(body)
            small, content = await self._open(Headers(scope=scope).get("content-type", ""), body)
            deadline = time.monotonic() + self.settings.deadline_s
            answer_in_this_task(Asked(Request(scope, receive), content, deadline))
            await self.app(scope, _replayed(small, receive), send_guarded)
        except ApiError as error:
            await _refuse(error, send_guarded)
        # Starlette's own handler of unexpected errors is outside of all middleware: its answers would not be counted.
        except Exception as error:
            if begun:
                raise
            refusal = as_api_error(error)
            if refusal.status == 500:
                log.error("a request failed", exc_info=error)
            await _refuse(refusal, send_guarded)
        finally:
            content.release()
            if body is not None:
                with suppress(BufferError):  # a decoder that was just stopped still has it
                    body.clear()
            self._held_bytes -= held

    def _check(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        host = headers.get("host", "")
        if self.settings.is_loopback and self.keys is None and not is_loopback(_hostname(host)):
            raise ApiError(403, "wrong_host", "this server answers to localhost only")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "cross_origin", "requests from pages of other sites are refused")
        if self.keys is None or path in OPEN_PATHS or path.startswith("/page/"):
            return
        bearer = headers.get("authorization", "").partition(" ")
        given = bearer[2] if bearer[0].lower() == "bearer" else headers.get("x-moondream-auth", "")
        scope["state"]["key"] = self.keys.name_of(given)
        self.keys.count(given)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytearray | None:
        """The complete body, or None where the client disconnected. Its bytes count as held until the response is
        sent."""
        if scope["method"] in ("GET", "HEAD"):
            return bytearray()
        declared = Headers(scope=scope).get("content-length", "0")
        if len(declared) > 20 or (declared.isdigit() and int(declared) > self.settings.max_body_bytes):
            raise self._too_large()
        if self._uploads >= self.settings.max_uploads:
            raise ApiError(429, "queue_full", "too many requests are being uploaded: try again", retry_after_s=2)
        self._uploads += 1
        try:
            return await self._receive_all(receive)
        finally:
            self._uploads -= 1

    async def _open(self, content_type: str, body: bytearray) -> tuple[bytes, Content]:
        """The body for the parser, and what was taken out; one large body at a time, off the event loop."""
        if not self.opens_bodies:
            return bytes(body), Content()
        if len(body) < _LARGE_BYTES:
            return open_body(content_type, body, self.settings.max_images)
        async with self._opening:
            return await asyncio.to_thread(open_body, content_type, body, self.settings.max_images)

    async def _receive_all(self, receive: Receive) -> bytearray | None:
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        self._held_bytes -= size
                        return None
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._held_bytes += len(chunk)
                    if size > self.settings.max_body_bytes:
                        raise self._too_large()
                    if self._held_bytes > self.settings.max_held_bytes:
                        raise ApiError(429, "queue_full", "too much is being uploaded: try again", retry_after_s=2)
                    body += chunk
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            self._held_bytes -= size
            raise ApiError(408, "body_timeout", "the body did not arrive in time") from None
        except ApiError:
            self._held_bytes -= size
            raise

    def _too_large(self) -> ApiError:
        limit = self.settings.max_body_bytes
        return ApiError(413, "body_too_large", f"the body is larger than {limit} bytes: send fewer or smaller images")


def _hostname(host: str) -> str:
    """The Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was already read, then any further message (a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(error: ApiError, send: Send) -> None:
    headers = {"content-type": "application/json", "connection": "close", **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})
