"""The front of a server with replicas: one port, where keys, limits and bodies are checked, and each request is passed
on to the replica with the fewest requests in flight.

    vlm-detect serve --model RUN --replicas 2
    kill -HUP PID                                # reads the files of the run and of the keys again

Every request gets its result, or a 503 with `Retry-After`: where no replica is ready, or where its replica died. A
request that a replica has received is not sent to a second one, which it might bring down too; the client may send it
again. A stream whose replica dies ends with an error in the usual shape.

This process loads no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from vlm_detect.apps.asked import unless_gone
from vlm_detect.apps.connections import Server, http_config, open_socket
from vlm_detect.apps.edge import ROUTE, Edge
from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.guard import Guard
from vlm_detect.apps.keys import Keys, read_keys
from vlm_detect.apps.logs import REQUEST_ID, current_request, set_up_logs
from vlm_detect.apps.metrics import ReplicaMetrics, RequestMetrics, add_sum, exposition
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.apps.supervisor import Replica, Supervisor
from vlm_detect.errors import UserError
from vlm_detect.version import __version__

log = logging.getLogger(__name__)
RETRY_AFTER_S = 2
_PASSED_ON = ("host", "content-type", "accept")  # headers of a request; keys stay here
_OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "date", "server", ROUTE}


class Forward:
    """ASGI application that passes requests on to the replicas of `supervisor`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["route"] = "other"  # until a replica names it
        request = Request(scope, receive)
        body = await request.body()
        tried: set[Replica] = set()
        while left := [replica for replica in self._supervisor.ready if replica not in tried]:
            tried.add(replica := left[0])
            sent = self._request(replica, request, body)
            with replica.in_use(), contextlib.suppress(httpx.ConnectError):
                await unless_gone(request, _answer(replica, sent, scope, send))
                return
        raise ApiError(503, "no_replica_ready", "no replica is ready: try again", retry_after_s=RETRY_AFTER_S)

    def _request(self, replica: Replica, request: Request, body: bytes) -> httpx.Request:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers[REQUEST_ID] = current_request() or ""
        raw_path = request.scope.get("raw_path") or request.scope["path"].encode()
        query = request.scope["query_string"]
        try:
            url = httpx.URL(scheme="http", host="localhost", raw_path=raw_path + (b"?" + query if query else b""))
        except httpx.InvalidURL as error:
            raise ApiError(404, "not_found", "Not Found") from error
        return replica.client.build_request(request.method, url, headers=headers, content=body)


async def _answer(replica: Replica, request: httpx.Request, scope: Scope, send: Send) -> None:
    """Send a replica's response: complete, or as it arrives if it is a stream. `httpx.ConnectError` where the replica
    did not get the request."""
    begun = False
    try:
        found = await replica.client.send(request, stream=True)
        try:
            scope["state"] |= {"route": found.headers.get(ROUTE, "other"), "replica": replica.number}
            is_stream = found.headers.get("content-type", "").startswith("text/event-stream")
            content = b"" if is_stream else await found.aread()
            headers = [pair for pair in found.headers.raw if pair[0].decode().lower() not in _OF_A_CONNECTION]
            begun = True
            await send({"type": "http.response.start", "status": found.status_code, "headers": headers})
            if is_stream:
                async for piece in found.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": content})
        finally:
            await found.aclose()
    except httpx.ConnectError:
        raise
    except httpx.TransportError as error:
        lost = ApiError(
            503, "replica_lost", "the replica of this request died or hangs: send it again", retry_after_s=1
        )
        if not begun:
            raise lost from error
        last = f"data: {json.dumps(lost.body() | {'completed': True})}\n\n".encode()
        await send({"type": "http.response.body", "body": last})


def create_front(
    supervisor: Supervisor, settings: ServerSettings, keys: Keys | None, registry: CollectorRegistry
) -> ASGIApp:
    """The application that stands in front of the replicas; /metrics has what is in `registry`."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def readyz(request: Request) -> Response:
        ready = len(supervisor.ready)
        facts = {"status": "ready" if ready else "not ready", "replicas": supervisor.wanted, "ready": ready}
        return JSONResponse(facts) if ready else JSONResponse(facts, 503, {"Retry-After": str(RETRY_AFTER_S)})

    async def scrape(request: Request) -> Response:
        return exposition(registry)

    # A router alone: the guard answers all errors.
    own = {"/healthz": healthz, "/readyz": readyz, "/metrics": scrape}
    router = Router([*(Route(path, endpoint) for path, endpoint in own.items()), Mount("/", Forward(supervisor))])
    return Edge(Guard(router, settings, keys, opens_bodies=False), RequestMetrics(registry))


def serve_replicas(spec: Mapping[str, Any], names: str, settings: ServerSettings) -> None:
    """Serve `spec` (see `replica.py`) by `settings.replicas` processes until SIGTERM or Ctrl-C; `names` is printed."""
    check_settings(settings)
    keys = Keys.from_settings(settings)
    set_up_logs(settings.log_json)
    with (
        open_socket(settings.host, settings.port) as bound,
        tempfile.TemporaryDirectory(prefix="vlm-detect-") as folder,
    ):
        # uvicorn passes a signal on to these when it has drained: a server that was asked to stop has not failed.
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda number, frame: None)
        registry = CollectorRegistry()
        supervisor = Supervisor(spec, settings, Path(folder), ReplicaMetrics(registry))
        add_sum(registry, Path(folder))
        asyncio.run(run_front(supervisor, names, settings, keys, registry, bound))


async def run_front(
    supervisor: Supervisor,
    names: str,
    settings: ServerSettings,
    keys: Keys | None,
    registry: CollectorRegistry,
    bound: socket.socket,
) -> None:
    """Serve until SIGTERM or Ctrl-C, from the start on: until a replica is ready, requests are answered with 503."""
    server = Server(http_config(create_front(supervisor, settings, keys, registry), settings))
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        if not starting.done():
            log.warning("no reload: the server is still starting")
            return
        reloads.add(task := asyncio.create_task(_reload(supervisor, keys, settings)))
        task.add_done_callback(reloads.discard)

    serving = asyncio.create_task(server.serve(sockets=[bound]))
    starting = asyncio.create_task(supervisor.start())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    try:
        await asyncio.wait([serving, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            host, port = bound.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            how = f"replicas: {supervisor.wanted}; Ctrl-C to stop, kill -HUP {os.getpid()} to reload"
            print(f"{names}: http://{shown}:{port} ({how})", flush=True)
        await serving
    finally:
        server.should_exit = True
        for task in (starting, *reloads):
            task.cancel()
        await asyncio.gather(starting, serving, *reloads, return_exceptions=True)
        await supervisor.stop()


async def _reload(supervisor: Supervisor, keys: Keys | None, settings: ServerSettings) -> None:
    """Read the file of keys and the files of the run again; keys that cannot be used stay as they are."""
    if keys is not None and settings.api_keys is not None:
        try:
            keys.replace(read_keys(Path(settings.api_keys)))
        except UserError as error:
            log.error("reload: the keys stay as they are: %s", error)
    await supervisor.reload()
