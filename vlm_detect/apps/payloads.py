"""What requests may hold. Images are data URLs: the server opens no address and no path that a request names."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vlm_detect.apps.errors import ApiError
from vlm_detect.records import Topic

_DATA_URL = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)


def _whole(text: str) -> str:
    """JSON can spell halves of characters, which no tokenizer takes and no answer can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds a lone surrogate, which is no character") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
ImageUrl = Annotated[str, Field(description="An image as a data URL: data:image/jpeg;base64,...")]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="of the image's width or height")]
Reference = Annotated[
    list[Part], Field(min_length=2, max_length=4, description="[x, y] or [x_min, y_min, x_max, y_max]")
]
References = Annotated[list[Reference], Field(max_length=64)]


class Payload(BaseModel):
    """Unknown fields are ignored, as the clients of both APIs send fields of other servers."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=False)


class Settings(Payload):
    """moondream's sampling settings; temperature 0 is greedy, and the default."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    max_tokens: Tokens | None = None
    max_objects: Annotated[int, Field(ge=1, le=1000)] | None = None
    variant: str | None = None


class Caption(Payload):
    image_url: ImageUrl
    length: Literal["short", "normal", "long"] = "normal"
    stream: bool = False
    model: Text | None = None
    settings: Settings = Settings()


class Query(Payload):
    question: Text
    image_url: ImageUrl | None = None
    stream: bool = False
    model: Text | None = None
    settings: Settings = Settings()
    reasoning: bool = False
    spatial_refs: References | None = None


class Detect(Payload):
    image_url: ImageUrl
    object: Text
    model: Text | None = None
    settings: Settings = Settings()


class PointAt(Detect):
    spatial_refs: References | None = None


class Place(Payload):
    x: Part
    y: Part


class Region(Payload):
    x_min: Part
    y_min: Part
    x_max: Part
    y_max: Part


class Gaze(Payload):
    """Where the eye at `eye` looks, or the `face`."""

    image_url: ImageUrl
    eye: Place | None = None
    face: Region | None = None
    force_detect: bool = False
    model: Text | None = None


class VerdictRequest(Payload):
    """One image, or several."""

    image_url: ImageUrl | None = None
    images: list[ImageUrl] | None = None
    model: Text | None = None


class ExplainRequest(Payload):
    image_url: ImageUrl
    stream: bool = False
    model: Text | None = None


class EvidenceRequest(Payload):
    image_url: ImageUrl
    topic: Topic = "generation"
    model: Text | None = None


class TextPart(Payload):
    type: Literal["text"]
    text: Text


class ImageReference(Payload):
    url: ImageUrl


class ImagePart(Payload):
    type: Literal["image_url"]
    image_url: ImageReference


class Message(Payload):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart | ImagePart] | None = None


class StreamOptions(Payload):
    include_usage: bool = False


class ChatCompletion(Payload):
    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Literal[1] | None = None
    stop: None = None
    tools: None = None
    response_format: None = None
    logprobs: Literal[False] | None = None
    reasoning: bool = False


def image_bytes(url: str, param: str = "image_url") -> bytes:
    """The bytes in a data URL; `ApiError` for anything else."""
    head = _DATA_URL.match(url, 0, 256)
    if not head:
        message = "give the image as a data URL (data:image/jpeg;base64,...): no address and no path is opened"
        raise ApiError(400, "not_a_data_url", message, param=param)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, "invalid_base64", f"the data URL is not base64: {error}", param=param) from error


def question_and_image(messages: list[Message]) -> tuple[str, str | None]:
    """The text that a conversation asks and the image it is about, if it has any.

    The models answer one question about one image: the last user message is asked, behind any system text, about the
    latest image that was given; what was said in between is not read again.
    """
    instructions = [_text(message) for message in messages if message.role in ("system", "developer")]
    asked = [message for message in messages if message.role == "user"]
    images = [
        part.image_url.url
        for message in asked
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    if not asked or messages[-1].role != "user":
        raise ApiError(400, "no_question", "the last message must be the user's", param="messages")
    return "\n".join(text for text in (*instructions, _text(asked[-1])) if text), images[-1] if images else None


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content.strip()
    parts = message.content or []
    return "\n".join(part.text for part in parts if isinstance(part, TextPart)).strip()
