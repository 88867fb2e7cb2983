"""The routes: OpenAI's chat completions, moondream's API, and our own for verdicts, reasons and evidence."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image

from vlm_detect.apps.asked import asked, client_gone
from vlm_detect.apps.bodies import Part
from vlm_detect.apps.errors import ApiError, Stopped, as_api_error
from vlm_detect.apps.logprobs import logprobs_body
from vlm_detect.apps.moondream_api import reasoning_of
from vlm_detect.apps.moondream_api import router as moondream
from vlm_detect.apps.payloads import (
    ChatCompletion,
    EvidenceRequest,
    ExplainRequest,
    Settings,
    VerdictRequest,
    question_and_image,
)
from vlm_detect.apps.replies import event_stream, finish_reason, service_of, token_limit
from vlm_detect.apps.service import Service, checked_text, error_body, prompt_of
from vlm_detect.apps.skill_tasks import Reason
from vlm_detect.apps.tasks import Answer, CnnLook, Judge, LookByCnn, Map, TextTask, Write
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.evidence import EvidenceMap
from vlm_detect.infer.explanation import Explanation
from vlm_detect.infer.picture import Picture
from vlm_detect.version import __version__

MAP_SIDE = 512  # of an evidence map's image

router = APIRouter()
router.include_router(moondream)


# OpenAI


@router.get("/v1/models", tags=["openai"])
async def models(request: Request) -> Any:
    return {"object": "list", "data": [_model(*item) for item in service_of(request).detectors.items()]}


@router.get("/v1/models/{name:path}", tags=["openai"])
async def model(request: Request, name: str) -> Any:
    return _model(name, service_of(request).detector(name))


def _model(name: str, detector: Detector) -> dict[str, Any]:
    calibration = detector.calibration
    facts = {"calibrated": calibration.n > 0, "reliable": calibration.reliable, "version": __version__}
    return {"id": name, "object": "model", "created": 0, "owned_by": "vlm-detect", **facts}


@router.post("/v1/chat/completions", tags=["openai"])
async def chat_completions(request: Request, payload: ChatCompletion) -> Any:
    service = service_of(request)
    detector = service.detector(payload.model)
    question, url = question_and_image(payload.messages)
    tokens = payload.max_completion_tokens or payload.max_tokens
    limit = token_limit(service, Settings(max_tokens=tokens))
    if payload.top_logprobs is not None and not payload.logprobs:
        raise ApiError(400, "invalid_request", "top_logprobs needs logprobs: true", param="top_logprobs")
    top = (payload.top_logprobs or 0) if payload.logprobs else None
    if payload.reasoning and payload.logprobs:
        raise ApiError(501, "not_implemented", "logprobs are not given with reasoning", param="logprobs")
    if payload.reasoning:
        asked = checked_text(question, service.settings)
        task: TextTask = Reason(asked, [], limit, payload.temperature, payload.top_p)
    else:
        task = Write(prompt_of(question, service.settings), limit, payload.temperature, payload.top_p, top)
    picture = None if url is None else await service.picture(url, "messages")

    def logprobs(answer: Answer) -> dict[str, Any] | None:
        return None if top is None else logprobs_body(detector.engine.vlm, answer.logprobs)

    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": payload.model}
    if not payload.stream:
        answer = await service.text(request, task, detector, picture)
        message = {"role": "assistant", "content": answer.text, **_thoughts(answer)}
        finish = {"finish_reason": finish_reason(answer.length), "logprobs": logprobs(answer)}
        choice = {"index": 0, "message": message, **finish}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}
    pieces = await service.pieces(task, detector, picture)
    with_usage = payload.stream_options is not None and payload.stream_options.include_usage

    def chunk(
        delta: dict[str, Any], finish: str | None = None, token_logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": token_logprobs}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    async def events() -> AsyncIterator[dict[str, Any]]:
        yield chunk({"role": "assistant", "content": ""})
        async for piece in pieces:
            if isinstance(piece, str):
                yield chunk({"content": piece})
                continue
            # Pieces are text that is final, not tokens: the tokens' log-probabilities come together, at the end.
            yield chunk(_thoughts(piece), finish_reason(piece.length), logprobs(piece))
            if with_usage:
                yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)}

    return event_stream(events(), end="[DONE]")


def _thoughts(answer: Answer) -> dict[str, Any]:
    """The thoughts before an answer, where the official client looks for them in a message."""
    if answer.reasoning is None:
        return {}
    found = reasoning_of(answer)["reasoning"]
    return {"reasoning": found["text"], "reasoning_details": {"grounding": found["grounding"]}}


def _usage(answer: Answer) -> dict[str, int]:
    total = answer.n_prompt_tokens + answer.n_tokens
    return {"prompt_tokens": answer.n_prompt_tokens, "completion_tokens": answer.n_tokens, "total_tokens": total}


# Ours


_FORM = ("model", "explain", "only_confirmed")  # a form's fields other than images
_VERDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": VerdictRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        **{name: VerdictRequest.model_json_schema()["properties"][name] for name in _FORM},
                    },
                    "required": ["image"],
                }
            },
        },
    }
}


@router.post("/v1/verdict", tags=["verdict"], openapi_extra=_VERDICT_BODY)
async def verdict(request: Request) -> Any:
    """The verdict on one image, or on many: an image that cannot be read then has an entry with its error."""
    service = service_of(request)
    sources, wanted, several = await _verdict_request(request)
    detector = service.detector(wanted.model)
    if wanted.explain and wanted.only_confirmed:
        detector.require_measures()
    if not sources:
        raise ApiError(400, "no_image", "give an image: image_url, images, or files named image", param="image_url")
    most = min(service.settings.max_images, service.settings.max_jobs)
    if len(sources) > most:
        message = f"{len(sources)} images, at most {most} per request: send several requests"
        raise ApiError(413, "too_many_images", message, param="images")
    # Nothing bounds the images of all requests together before they are submitted, so requests with many take turns.
    async with service.turn() if len(sources) > 1 else contextlib.nullcontext():
        pictures = await _readable(request, sources)
        good = [picture for picture in pictures if isinstance(picture, Picture)]
        started = service.start(Judge(), detector, good) if good else []
    judged = await service.verdicts(request, started)
    if wanted.explain:
        found = iter(await _explained(request, wanted, detector, good, judged))
    else:
        found = iter([one if isinstance(one, Exception) else _body(one) for one in judged])
    bodies = [next(found) if isinstance(picture, Picture) else picture for picture in pictures]
    if several:
        return {"verdicts": [error_body(body) if isinstance(body, Exception) else body for body in bodies]}
    (body,) = bodies
    if isinstance(body, Exception):
        raise body
    return body


async def _explained(
    request: Request,
    wanted: VerdictRequest,
    detector: Detector,
    pictures: Sequence[Picture],
    judged: Sequence[Verdict | Exception],
) -> list[dict[str, Any] | Exception]:
    """The body of each verdict with its reasons, or the error that stands for it."""
    service = service_of(request)
    sure = [(picture, one) for picture, one in zip(pictures, judged, strict=True) if isinstance(one, Verdict)]
    explained = iter(await service.explanations(request, detector, [p for p, _ in sure], [v for _, v in sure]))
    bodies: list[dict[str, Any] | Exception] = []
    for verdict in judged:
        if isinstance(verdict, Exception):
            bodies.append(verdict)
            continue
        explanation = next(explained)
        if isinstance(explanation, Exception):
            bodies.append(explanation)
            continue
        bodies.append({**_body(verdict), **_reasons(service, verdict, explanation, wanted.only_confirmed)})
    return bodies


def _reasons(service: Service, verdict: Verdict, explanation: Explanation, only_confirmed: bool) -> dict[str, Any]:
    """What an explanation adds to a verdict's body."""
    against = list(verdict.contradictions_with(explanation))
    if only_confirmed or service.settings.only_confirmed:
        explanation = explanation.only_confirmed()
    return {**explanation.to_json(), "contradictions": against}


async def _readable(request: Request, sources: Sequence[str | Part]) -> list[Picture | ApiError]:
    """The image of each source, or why it cannot be used."""
    service = service_of(request)
    pictures: list[Picture | ApiError] = []
    pixels, most = 0, service.settings.max_held_pixels
    for source in sources:
        if await request.is_disconnected():
            raise client_gone()
        try:
            picture = await service.picture(source)
        except Exception as error:
            refused = as_api_error(error)
            if refused.status >= 500:
                raise
            pictures.append(refused)
            continue
        pictures.append(picture)
        pixels += picture.image.width * picture.image.height
        if len(sources) > 1 and pixels > most:
            message = f"the images have more than {most} pixels together: send several requests"
            raise ApiError(413, "too_many_pixels", message, param="images")
    return pictures


def _body(verdict: Verdict) -> dict[str, Any]:
    return {**verdict.to_json(), "width": verdict.image.width, "height": verdict.image.height}


async def _verdict_request(request: Request) -> tuple[list[str | Part], VerdictRequest, bool]:
    """The images of a request as data URLs or parts of a form, what else it says, and whether a list is wanted."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images, wanted = _form_images()
        return [*images], wanted, len(images) > 1
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send application/json or multipart/form-data")
    payload = VerdictRequest.model_validate_json(await request.body())
    if payload.images is not None:
        return [*payload.images], payload, True
    return [payload.image_url] if payload.image_url is not None else [], payload, False


def _form_images() -> tuple[list[Part], VerdictRequest]:
    fields = asked().content.fields
    images = [Part(one.data) for one in fields if one.name == "image" and one.is_file]
    texts = {name: [bytes(one.data).decode("utf-8", "replace") for one in fields if one.name == name] for name in _FORM}
    return images, VerdictRequest.model_validate({name: values[0] for name, values in texts.items() if values})


@router.post("/v1/explain", tags=["verdict"])
async def explain(request: Request, payload: ExplainRequest) -> Any:
    """The model's reasons under its verdict, each checked against the image, and whether they contradict it.

    Of a stream the last event has them.
    """
    service = service_of(request)
    detector = service.detector(payload.model)
    if payload.only_confirmed:
        detector.require_measures()
    picture = await service.picture(payload.image_url)
    (found,) = await service.verdicts(request, service.start(Judge(), detector, [picture]))
    if isinstance(found, Exception):
        raise found
    task, only_confirmed = service.explain_task(found), payload.only_confirmed or service.settings.only_confirmed

    async def conclusion(answer: Answer) -> dict[str, Any]:
        explanation = await service.checked(found, answer.text)
        facts = {"label": found.label, "p_fake": found.p_fake, "model": found.model}
        return {**facts, **_reasons(service, found, explanation, only_confirmed)}

    if not payload.stream:
        return await conclusion(await service.text(request, task, detector, picture))
    pieces = await service.pieces(task, detector, picture)

    async def events() -> AsyncIterator[dict[str, Any]]:
        async for piece in pieces:
            if not isinstance(piece, str):
                yield {"chunk": "", "completed": True, **await conclusion(piece)}
            elif not only_confirmed:  # which is known when all of it is written
                yield {"chunk": piece, "completed": False}

    return event_stream(events())


@router.post("/v1/evidence", tags=["verdict"])
async def evidence(request: Request, payload: EvidenceRequest) -> Any:
    """Where the verdict comes from: a value in nats for each place, and the map as a transparent PNG overlay."""
    service = service_of(request)
    picture = await service.picture(payload.image_url)
    found: EvidenceMap = await service.result(request, Map(payload.topic), service.detector(payload.model), picture)
    width, height = picture.image.size
    scale = min(1.0, MAP_SIDE / max(width, height))
    png = await asyncio.to_thread(found.png, (max(1, round(width * scale)), max(1, round(height * scale))))
    return {
        "log_odds": found.log_odds,
        "values": found.values.tolist(),
        "peak": list(found.peak),
        "layer": _png_url(png),
        "cnn": await _look_by_cnn(request, service, picture),
    }


async def _look_by_cnn(request: Request, service: Service, picture: Picture) -> dict[str, Any] | None:
    """Verdict and Grad-CAM of the CNN that is served with the models, or None; its image is the square that the CNN
    reads."""
    if service.cnn is None:
        return None
    task = LookByCnn(service.cnn)
    look: CnnLook = await service.result(request, task, service.detector(None), picture)
    buffer = io.BytesIO()
    Image.fromarray(look.heat).save(buffer, "PNG")
    facts = {"model": service.cnn.name, "label": look.label, "p_fake": look.p_fake}
    return {**facts, "picture": _png_url(buffer.getvalue())}


def _png_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@router.get("/healthz", tags=["server"])
async def healthz(request: Request) -> Any:
    """Liveness: whether the process can still answer; if not, it has to be restarted."""
    if not service_of(request).worker.is_alive:
        raise ApiError(503, "failed", "the thread of the models has ended: restart the server")
    return JSONResponse({"status": "ok", "version": __version__})


@router.get("/readyz", tags=["server"])
async def readyz(request: Request) -> Any:
    """Readiness: whether requests for the models are accepted."""
    if not service_of(request).worker.accepts:
        raise Stopped("the server is shutting down")
    return JSONResponse({"status": "ready"})
