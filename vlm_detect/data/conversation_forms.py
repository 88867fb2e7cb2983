"""Parse one conversation about an image from common JSON layouts.

    talk = read_conversation({"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nReal?"}, ...]})
    talk = read_conversation({"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>Real?"}, ...]})
    talk.image, talk.turns

LLaVA and ShareGPT write `conversations` of from and value; OpenAI and ms-swift `messages` of role and content, which
may be a list of parts; older ms-swift writes `query`, `response` and `history`. The tag that marks the image's place in
the first question is removed; anything else that looks like a tag is text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_detect.questions.markup import untagged
from vlm_detect.records import Label, is_real_name, label_named

_ASKS = {"human", "user"}
_ANSWERS = {"gpt", "assistant", "bot", "model", "chatgpt", "response"}
_PATH_TAG = re.compile(
    r"<(img|image)>\s*([^<>\n]+?)\s*</\1>", re.IGNORECASE
)  # Qwen-VL and ms-swift: a path in the text


@dataclass(frozen=True)
class Conversation:
    """`image` is a path or the bytes of a file; `turns` are (question, answer) pairs."""

    image: str | bytes
    turns: tuple[tuple[str, str], ...]
    system: str  # text before the first question
    label: Label | None
    generator: str


def read_conversation(record: Any) -> Conversation:
    """Parse a record; raises ValueError with the reason if it is invalid."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a {type(record).__name__}, not an object")
    images = [*_listed(record.get("images")), *_listed(record.get("image"))]
    system = str(record.get("system") or "")
    turns: list[tuple[str, str]] = []
    for role, text, inside in _messages(record):
        images += inside
        if role == "system" and not turns:
            system = text
        else:
            turns.append((role, text))
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} images; exactly one is supported" if images else "it has no image")
    label, generator = _label(record)
    return Conversation(_image(images[0]), _paired(turns), system, label, generator)


def _messages(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """(role, text, images named in it) of each message; roles are system, user and assistant."""
    messages = record.get("conversations") or record.get("messages")
    if messages is None and "query" in record:
        history = [turn for pair in record.get("history") or () for turn in pair]
        said = [*history, record["query"], record.get("response")]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("it has no conversation (conversations, messages, or query and response)")
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"a message is a {type(message).__name__}, not an object")
        role = str(message.get("from", message.get("role"))).lower()
        role = "user" if role in _ASKS else "assistant" if role in _ANSWERS else role
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"a message has the role {role!r}, which is neither the user nor the model")
        yield role, *_content(message.get("value", message.get("content")))


def _content(content: Any) -> tuple[str, list[Any]]:
    """The text of a message and its own images."""
    if isinstance(content, str):
        return _PATH_TAG.sub("", content), [found[2] for found in _PATH_TAG.finditer(content)]
    if not isinstance(content, Sequence):
        raise ValueError(f"a message is a {type(content).__name__}, not a text")
    texts, images = [], []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, Mapping):
            raise ValueError(f"a part of a message is a {type(part).__name__}, not an object")
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            # An image part without a path means the record's image.
            images += _listed(part.get("image_url") or part.get("image") or part.get("url") or part.get("path"))
    return "\n".join(texts), images


def _paired(turns: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("its questions and answers do not alternate")
    texts = [untagged(turns[0][1]).strip(), *(text.strip() if role == "user" else text for role, text in turns[1:])]
    if not all(text.strip() for text in texts):
        raise ValueError("a question or an answer is empty")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _label(record: Mapping[str, Any]) -> tuple[Label | None, str]:
    """The record's label: from a label field, or else from its generator."""
    about = record.get("metadata") or {}
    if not isinstance(about, Mapping):
        raise ValueError(f"its metadata are a {type(about).__name__}, not an object")
    generator = str(about.get("generator") or record.get("generator") or "")
    label = label_named(str(about.get("label") or record.get("label") or ""))
    if label is None and generator:
        label = "real" if is_real_name(generator) else "generated"
    return label, "" if label == "real" else generator


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, "") else [value]


def _image(named: Any) -> str | bytes:
    """A path, or the bytes of a data URL."""
    if isinstance(named, Mapping):  # {path, bytes}, {url}
        named = named.get("path") or named.get("url") or named.get("bytes")
    if not isinstance(named, str):
        raise ValueError("it has no image")
    if not named.startswith("data:"):
        return named
    try:
        return base64.b64decode(named.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its image is not base64 ({error})") from error
