"""Request bodies. Images are data URLs: the server opens no URL and no path that a request names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vlm_detect.apps.bodies import is_name_of_part
from vlm_detect.apps.errors import ApiError
from vlm_detect.images.data_url import WANTED
from vlm_detect.records import Topic

_IMAGE_PART = f'{{"type": "image_url", "image_url": {{"url": "{WANTED}"}}}}'
_TEXT_PART = '{"type": "text", "text": "..."}'


def _whole(text: str) -> str:
    """Reject lone surrogates, which JSON can express, but no tokenizer or response can encode."""
    if is_name_of_part(text):
        raise ValueError("is an image where text is expected")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("contains a lone surrogate, which is not a character") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
ImageUrl = Annotated[str, Field(description=f"An image as a data URL: {WANTED}")]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="of the image's width or height")]
Reference = Annotated[
    list[Part], Field(min_length=2, max_length=4, description="[x, y] or [x_min, y_min, x_max, y_max]")
]
References = Annotated[list[Reference], Field(max_length=64, fail_fast=True)]


class Payload(BaseModel):
    """Unknown fields are ignored, because clients of both APIs send fields of other servers; null means not given."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


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
    """Where the eye at `eye`, or the `face`, looks."""

    image_url: ImageUrl
    eye: Place | None = None
    face: Region | None = None
    force_detect: bool = False
    model: Text | None = None


class VerdictRequest(Payload):
    """One image, or several; with `explain` the reasons of each verdict too."""

    image_url: ImageUrl | None = None
    images: Annotated[list[ImageUrl], Field(max_length=1024, fail_fast=True)] | None = None
    explain: bool = False
    only_confirmed: bool = False
    model: Text | None = None


class ExplainRequest(Payload):
    image_url: ImageUrl
    stream: bool = False
    only_confirmed: bool = False
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


def _checked_messages(messages: Any) -> Any:
    """Reject malformed parts by their place: a union's own errors list every branch and no remedy."""
    for i, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        place = f"messages[{i}].content"
        if not isinstance(content, str | list | None):
            raise _wrong_part(place, f"give a text, or a list of parts: {_TEXT_PART} and {_IMAGE_PART}")
        for j, part in enumerate(content if isinstance(content, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            where = f"{place}[{j}]"
            if kind == "text":
                if not isinstance(part.get("text"), str):
                    raise _wrong_part(f"{where}.text", f"a text part is {_TEXT_PART}")
            elif kind == "image_url":
                reference = part.get("image_url")
                if not (isinstance(reference, dict) and isinstance(reference.get("url"), str)):
                    raise _wrong_part(f"{where}.image_url", f"an image part is {_IMAGE_PART}")
            else:
                shown = f"type {str(kind)[:40]!r}" if kind is not None else "no type"
                raise _wrong_part(where, f"has {shown}: a part is {_TEXT_PART} or {_IMAGE_PART}")
    return messages


def _wrong_part(place: str, message: str) -> ApiError:
    return ApiError(400, "invalid_content_part", f"{place}: {message}", param=place)


class Message(Payload):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart | ImagePart] | None = None


class StreamOptions(Payload):
    include_usage: bool = False


class ChatCompletion(Payload):
    model: Text
    messages: Annotated[
        list[Message], Field(min_length=1, max_length=256, fail_fast=True), BeforeValidator(_checked_messages)
    ]
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
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning: bool = False


def question_and_image(messages: list[Message]) -> tuple[str, str | None]:
    """The question of a conversation and its image, if it has one.

    The models answer one question about one image: the last user message, after any system text, about the latest
    image. Earlier turns are ignored.
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
