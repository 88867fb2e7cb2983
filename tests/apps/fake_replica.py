"""A replica without a model, for tests of the supervisor: its answers name the content of the file that it "serves"."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vlm_detect.apps.edge import ReplicaEdge
from vlm_detect.apps.logs import current_request
from vlm_detect.apps.metrics import ModelMetrics

metrics = ModelMetrics(CollectorRegistry())


async def ok(request: Request) -> Response:
    return JSONResponse({})


async def verdict(request: Request) -> Response:
    metrics.verdicts.labels("real").inc()
    await asyncio.sleep(0.05)
    facts = {"run": run, "pid": os.getpid(), "request_id": current_request(), "body": (await request.body()).decode()}
    return JSONResponse(facts | {"headers": dict(request.headers)})


async def stream(request: Request) -> Response:
    async def endless() -> AsyncIterator[str]:
        while True:
            yield f"data: {json.dumps({'pid': os.getpid()})}\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(endless(), media_type="text/event-stream")


if __name__ == "__main__":
    spec = json.loads(sys.stdin.buffer.readline())
    run = Path(spec["models"][0][0]).read_text(encoding="utf-8")
    if run == "broken":
        print("a line of a library", file=sys.stderr)
        sys.exit("error: the run is broken: give another")
    app = Starlette(
        routes=[
            *(Route(path, ok) for path in ("/readyz", "/healthz")),
            Route("/v1/verdict", verdict, methods=["POST"]),
            Route("/v1/stream", stream),
        ]
    )
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(spec["socket"])
    uvicorn.Server(uvicorn.Config(ReplicaEdge(app), log_level="error")).run(sockets=[bound])
