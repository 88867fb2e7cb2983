"""The outermost middleware: every request has an id, is counted and timed, and has a line in a JSON log.

Requests that the guard refuses are included. What happens further in is known from the request's scope: its `state` may
hold the name of the key, and in front of replicas the route and the number of the replica that answered.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_detect.apps.logs import REQUEST_ID, begin_request, log_request
from vlm_detect.apps.metrics import RequestMetrics

ROUTE = "x-vlm-detect-route"  # a header in which a replica names the route of a response
CLIENT_GONE = 499  # the status of a request whose client left before the response began


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE
        request_id = begin_request(Headers(scope=scope).get(REQUEST_ID))
        state = scope.setdefault("state", {})

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route, key = state.get("route") or route_of(scope), state.get("key")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if key is not None:
                self.metrics.by_key.labels(key, status).inc()
            log_request(
                route=route,
                method=scope["method"],
                status=status,
                seconds=round(seconds, 6),
                key=key,
                replica=state.get("replica"),
            )


class ReplicaEdge:
    """ASGI middleware around a replica's application: takes over the id of a request, and names its route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin_request(Headers(scope=scope).get(REQUEST_ID))

        async def send_with_route(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[ROUTE] = route_of(scope)
            await send(message)

        await self.app(scope, receive, send_with_route)


def route_of(scope: Scope) -> str:
    """The route's path as it is declared: a path chosen by the client must not become a label."""
    return getattr(scope.get("route"), "path", "other")
