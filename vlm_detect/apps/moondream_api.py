"""moondream's API: query, caption, detect, point, and gaze (which moondream's own server lacks)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.payloads import Caption, Detect, Gaze, PointAt, Query
from vlm_detect.apps.replies import event_stream, finish_reason, service_of, token_limit
from vlm_detect.apps.service import checked_text, prompt_of
from vlm_detect.apps.skill_tasks import FindGaze, Locate, Located, Reason
from vlm_detect.apps.tasks import Answer, TextTask, Write
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.locate import MAX_OBJECTS, STEPS, Skill
from vlm_detect.models.regions import Box, Point

router = APIRouter(tags=["moondream"])


@router.post("/v1/query")
async def query(request: Request, payload: Query) -> Any:
    """An answer about an image, or without one; with `reasoning` also the reasoning before it."""
    service = service_of(request)
    settings, references = payload.settings, payload.spatial_refs or []
    if references and payload.image_url is None:
        raise ApiError(400, "no_image", "spatial_refs are places in an image: give the image too", param="image_url")
    tokens = token_limit(service, settings)
    if payload.reasoning:
        question = checked_text(payload.question, service.settings)
        task: TextTask = Reason(question, references, tokens, settings.temperature, settings.top_p)
    else:
        prompt = prompt_of(payload.question, service.settings, references)
        task = Write(prompt, tokens, settings.temperature, settings.top_p)
    return await _text(request, payload, task, payload.image_url, "answer")


@router.post("/v1/caption")
async def caption(request: Request, payload: Caption) -> Any:
    def prompt(detector: Detector) -> tuple[str, list[int]]:
        return "", detector.engine.vlm.caption_ids(payload.length)

    settings = payload.settings
    task = Write(prompt, token_limit(service_of(request), settings), settings.temperature, settings.top_p)
    return await _text(request, payload, task, payload.image_url, "caption")


async def _text(request: Request, payload: Query | Caption, task: TextTask, url: str | None, field: str) -> Any:
    service = service_of(request)
    detector = service.detector(payload.model)
    picture = None if url is None else await service.picture(url)
    request_id = uuid.uuid4().hex
    if not payload.stream:
        answer = await service.text(request, task, detector, picture)
        finish = finish_reason(answer.length)
        return {"request_id": request_id, **reasoning_of(answer), field: answer.text, "finish_reason": finish}
    pieces = await service.pieces(task, detector, picture)

    async def events() -> AsyncIterator[dict[str, Any]]:
        thoughts: dict[str, Any] = {}
        async for piece in pieces:
            if isinstance(piece, str):
                yield {"chunk": piece, "completed": False, "request_id": request_id}
            else:
                thoughts = reasoning_of(piece)
        yield {"chunk": "", "completed": True, "request_id": request_id, **thoughts}

    return event_stream(events())


def reasoning_of(answer: Answer) -> dict[str, Any]:
    """The reasoning before an answer as moondream's API gives it; empty where there is none."""
    if answer.reasoning is None:
        return {}
    grounding = [one._asdict() for one in answer.reasoning.grounding]
    return {"reasoning": {"text": answer.reasoning.text, "grounding": grounding}}


@router.post("/v1/detect")
async def detect(request: Request, payload: Detect) -> Any:
    """The boxes of what `object` names, in parts of the image's width and height."""
    return await _locate(request, payload, "detect", "objects")


@router.post("/v1/point")
async def point(request: Request, payload: PointAt) -> Any:
    """A point on each of what `object` names, in parts of the image's width and height."""
    if payload.spatial_refs:
        raise ApiError(501, "not_implemented", "point takes no spatial_refs: moondream2 supports them in query only")
    return await _locate(request, payload, "point", "points")


async def _locate(request: Request, payload: Detect, skill: Skill, field: str) -> Any:
    service = service_of(request)
    settings = payload.settings
    most = max(1, token_limit(service, settings) // STEPS[skill])
    most = min(settings.max_objects or MAX_OBJECTS, most)
    phrase = checked_text(payload.object, service.settings, "object")
    detector = service.detector(payload.model)
    picture = await service.picture(payload.image_url)
    found: Located = await service.result(request, Locate(skill, phrase, most), detector, picture)
    places = [place._asdict() for place in found.places]
    return {"request_id": uuid.uuid4().hex, field: places, "finish_reason": finish_reason(found.cut_off)}


@router.post("/v1/gaze")
async def gaze(request: Request, payload: Gaze) -> Any:
    """Where an eye looks, or (steadier and slower) a face; null where the model finds no target."""
    if (payload.eye is None) == (payload.face is None):
        raise ApiError(400, "invalid_request", "give exactly one of eye (a point) and face (a box)", param="eye")
    service = service_of(request)
    eye = None if payload.eye is None else Point(payload.eye.x, payload.eye.y)
    face = None if payload.face is None else Box(**payload.face.model_dump())
    detector = service.detector(payload.model)
    picture = await service.picture(payload.image_url)
    found: Point | None = await service.result(request, FindGaze(eye, face, payload.force_detect), detector, picture)
    return {"request_id": uuid.uuid4().hex, "gaze": found and found._asdict()}


@router.post("/v1/segment")
async def segment(request: Request) -> Any:
    raise ApiError(501, "not_implemented", "moondream2 does not segment: detect gives boxes")
