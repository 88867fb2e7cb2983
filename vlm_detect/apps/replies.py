"""Shared by the routes of every API: the service of a request, and streamed answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.payloads import Settings
from vlm_detect.apps.service import Service, error_body


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def token_limit(service: Service, settings: Settings) -> int:
    """The token limit of a text; rejects requests that no text here can meet."""
    if settings.variant:
        raise ApiError(501, "not_implemented", "variants are not offered here: name a model instead")
    return min(settings.max_tokens or service.settings.max_new_tokens, service.settings.max_new_tokens)


def finish_reason(cut_off: bool) -> str:
    return "length" if cut_off else "stop"


def event_stream(events: AsyncIterator[dict[str, Any]], end: str | None = None) -> StreamingResponse:
    """Server-sent events; an error midway is sent as the last event, in the usual shape."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
        except Exception as error:
            yield f"data: {json.dumps(error_body(error) | {'completed': True})}\n\n"
        if end:
            yield f"data: {end}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
