"""HTTP connections within bounds: uvicorn's protocol, hardened against clients that send slowly, in tiny chunks, or
nothing.

uvicorn waits forever for the end of a request's headers, and such connections count against its limit. Here

- headers have to be complete within a time limit; when too many connections are incomplete, the oldest are closed
  (connections that have sent a request before are counted separately);
- a connection is read in pieces that take the event loop milliseconds, and chunks of a few bytes, which cost more than
  they carry, are refused;
- a client that does not read its answer is dropped.

`open_socket` and `http_config` give such a server its port and its limits.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm_detect.apps.settings import ServerSettings
from vlm_detect.errors import UserError

HEAD_BYTES, BODY_BYTES = 4 << 10, 64 << 10  # read at a time; the headers can be followed by many small chunks
MIN_BYTES_A_LINE = 32  # of a chunked body, whose chunks are framed by lines
ACCEPTED_AT_ONCE, WAITING_CONNECTIONS = 32, 2048
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SMALL = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Server(uvicorn.Server):
    """uvicorn's server, accepting a burst of connections a few at a time: asyncio accepts the whole backlog at once,
    and does nothing else until each connection has its protocol object."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(WAITING_CONNECTIONS)


class Connections:
    """The connections with an incomplete request, the oldest first; makes the protocol of each new connection."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._new: dict[BoundedProtocol, None] = {}
        self._idle: dict[BoundedProtocol, None] = {}

    def __call__(self, *args: Any, **options: Any) -> BoundedProtocol:
        return BoundedProtocol(self, *args, **options)

    def owes(self, protocol: BoundedProtocol) -> None:
        group = self._new if protocol.cycle is None else self._idle
        group[protocol] = None
        if len(group) > self.settings.max_idle_connections:
            oldest = next(iter(group))
            self.owes_nothing(oldest)
            oldest.transport.abort()

    def owes_nothing(self, protocol: BoundedProtocol) -> None:
        self._new.pop(protocol, None)
        self._idle.pop(protocol, None)


class BoundedProtocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection. A buffered protocol, so it decides how much is read at a time."""

    def __init__(self, connections: Connections, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._all = connections
        self._settings = connections.settings
        self._buffer = bytearray(HEAD_BYTES)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.owes(self)
        self._start("head", self._settings.header_timeout_s, self._on_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.owes_nothing(self)
        for name in list(self._timers):
            self._stop(name)

    def get_buffer(self, sizehint: int) -> bytearray:
        size = BODY_BYTES if self.conn.their_state is h11.SEND_BODY else HEAD_BYTES
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._is_in_tiny_pieces(data):
            self._refuse(_TOO_SMALL)
            return
        super().data_received(data)
        if self._is_busy:
            self._all.owes_nothing(self)
            self._stop("head")
        elif "head" not in self._timers and not self.transport.is_closing():
            self._start("head", self._settings.header_timeout_s, self._on_timeout)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy and not self.transport.is_closing():
            self._all.owes(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("answer", self._settings.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("answer")

    @property
    def _is_busy(self) -> bool:
        """A request has arrived and its response is not yet sent."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_in_tiny_pieces(self, data: bytes) -> bool:
        if self.conn.their_state is not h11.SEND_BODY or not self.headers:
            return False
        is_chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        return is_chunked and data.count(b"\r\n") > 16 + len(data) // MIN_BYTES_A_LINE

    def _on_timeout(self) -> None:
        if not self._is_busy:
            self._refuse(_TOO_LATE)

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            if not self._is_busy:
                self.transport.write(answer)
            self.transport.close()

    def _start(self, name: str, seconds: float, then: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, then)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; `UserError` where the port cannot be used, before any model is loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # asyncio sets TCP_NODELAY only on sockets whose protocol is TCP.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise UserError(f"port {port} on {host} {reason}: give another with --port") from error
    return bound


def http_config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    """uvicorn within the bounds of `settings`. It logs errors only, through the log of the process: clients must not
    fill it with warnings."""
    return uvicorn.Config(
        app,
        http=Connections(settings),  # type: ignore[arg-type]  # any callable that makes a protocol works
        backlog=ACCEPTED_AT_ONCE,
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_s),
        h11_max_incomplete_event_size=16 << 10,
    )
