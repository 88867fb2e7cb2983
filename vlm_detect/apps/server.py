"""The server: a web page, and APIs compatible with the clients of moondream and OpenAI.

    vlm-detect serve --model runs/moondream_lora                      # http://127.0.0.1:8000
    vlm-detect serve --model runs/a --compare vikhyatk/moondream2     # two models: the page's compare tab

docs/server.md has the routes, the limits and the clients. Request content is never written to disk or logged, and the
server opens no outgoing connection. SIGTERM and Ctrl-C let running requests finish.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from vlm_detect.apps.api import router
from vlm_detect.apps.connections import Server, http_config, open_socket
from vlm_detect.apps.edge import Edge, ReplicaEdge
from vlm_detect.apps.errors import ApiError, Busy, Expired, Stopped, as_api_error
from vlm_detect.apps.guard import Guard
from vlm_detect.apps.keys import Keys
from vlm_detect.apps.loading import load_detector
from vlm_detect.apps.logs import set_up_logs
from vlm_detect.apps.metrics import ModelMetrics, RequestMetrics, exposition
from vlm_detect.apps.service import Service
from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.infer.detector import Detector
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.registry import without_adapter
from vlm_detect.version import __version__

PAGE = Path(str(files("vlm_detect") / "apps" / "page"))
_ERRORS = {
    400: "The request or its image cannot be used",
    401: "The key is missing or wrong",
    403: "The request comes from another site",
    404: "No such model or route",
    408: "The body did not arrive in time",
    413: "Too large",
    415: "Unsupported content type",
    429: "Too many requests are waiting, or the key's rate limit is used up: see Retry-After",
    499: "The client disconnected",
    501: "Not supported",
    503: "Out of time or memory, or shutting down",
}


def create_app(
    detectors: Mapping[str, Detector],
    settings: ServerSettings | None = None,
    cnn: CnnDetector | None = None,
    *,
    is_replica: bool = False,
) -> FastAPI:
    """The application that serves `detectors`; the first one answers requests that name no model.

    Of a replica the front counts the requests.
    """
    settings = settings or ServerSettings()
    registry = CollectorRegistry()
    metrics = ModelMetrics(registry)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(detectors, settings, metrics, cnn)
        yield
        app.state.service.stop()

    app = FastAPI(
        title="vlm-detect",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from other sites
        redoc_url=None,
        responses={status: {"description": text} for status, text in _ERRORS.items()},
    )
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def scrape() -> Response:
        return exposition(registry)

    _add_error_handlers(app)
    _describe_refusals(app)
    app.add_middleware(Guard, settings=settings, keys=Keys.from_settings(settings))
    if is_replica:
        app.add_middleware(ReplicaEdge)
    else:
        app.add_middleware(Edge, metrics=RequestMetrics(registry))
    return app


def _add_error_handlers(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: ValidationError | RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = _path(first["loc"])[:200]
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return answer(ApiError(400, "invalid_request", message, param=place or None))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        refusal = ApiError(error.status_code, code, str(error.detail))
        return JSONResponse(refusal.body(), status_code=error.status_code, headers=error.headers)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return answer(as_api_error(error))

    for kind in (ApiError, UserError, ImageRejected, Busy, Expired, Stopped):
        app.add_exception_handler(kind, failed)


def _path(location: Sequence[int | str]) -> str:
    """A location in a body, such as `messages[0].role`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "body"]
    return "".join(parts).removeprefix(".")


def _describe_refusals(app: FastAPI) -> None:
    """The schema lists 400 where FastAPI would list 422."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in app.openapi_schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def run(app: FastAPI, settings: ServerSettings, bound: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish within `drain_s`."""
    config = http_config(app, settings)
    # What is loaded by now stays: a full collection would visit all of it, a third of a second in which requests wait.
    gc.collect()
    gc.freeze()
    # uvicorn passes the signal on to these when it has drained: a server that was asked to stop has not failed.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: None)
    Server(config).run(sockets=[bound])


def serve(
    models: Sequence[tuple[str, str | None]],
    settings: ServerSettings,
    cnn: str | None = None,
    expert: str | None = None,
) -> None:
    """Load the models (see `load_models`), and serve them."""
    check_settings(settings)
    Keys.from_settings(settings)  # a bad file is an error before any model is loaded
    set_up_logs(settings.log_json)
    with open_socket(settings.host, settings.port) as bound:
        detectors, looking = load_models(models, settings, cnn, expert)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{', '.join(detectors)}: http://{shown}:{port} (Ctrl-C to stop)", flush=True)
        run(create_app(detectors, settings, looking), settings, bound)


def load_models(
    models: Sequence[tuple[str, str | None]], settings: ServerSettings, cnn: str | None, expert: str | None
) -> tuple[dict[str, Detector], CnnDetector | None]:
    """The detectors of `models` (an ID and an adapter each) by name, and the run of a CNN.

    `expert` speaks with the first of them, in place of the one that its fusion names.
    """
    looking = CnnDetector.load(cnn) if cnn else None
    loaded: list[Detector] = []
    for model, adapter in models:
        own = None if loaded else expert
        loaded.append(_base_among(loaded, model) or load_detector(model, adapter, own))
    if settings.only_confirmed:
        loaded[0].require_measures()
    detectors = {detector.name: detector for detector in loaded}
    if len(detectors) < len(loaded):
        raise UserError(f"--compare names a model that is already served ({loaded[0].name}): give another")
    return detectors, looking


def _base_among(loaded: Sequence[Detector], model: str) -> Detector | None:
    """A detector for `model` that shares the weights of a loaded one, which has an adapter on it, or None."""
    for detector in loaded:
        vlm = detector.engine.vlm
        if vlm.name == model and (base := without_adapter(vlm)) is not None:
            return Detector(base)
    return None
