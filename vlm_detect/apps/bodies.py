"""Pre-parse request bodies: images are taken out, everything else is bounded.

    small, content = open_body(content_type, body, max_images)

`small` is JSON of at most a megabyte, with names in place of its data URLs; `content.images` maps the names to images.
For multipart/form-data `content.fields` holds the parts, and `small` is empty.

A JSON parser builds an object for each value, and a validator an error for each wrong one: thirty megabytes of
`[0,0,...]` take minutes and gigabytes. So values, strings and depth are counted first, by searches that stop at the
bound. Strings that hold images never become Python strings here: they stay views of the body.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from itertools import count

from vlm_detect.apps.errors import ApiError
from vlm_detect.images.isolated import Encoding

MAX_VALUES = 20_000  # in arrays and objects of a JSON body
MAX_QUOTES = 80_000
MAX_DEPTH = 32
MAX_TEXT_BYTES = 1 << 20  # of a JSON body without its images
MIN_IMAGE_BYTES = 1024  # shorter data URLs stay where they are
MAX_PART_HEADER_BYTES = 8192
OTHER_FIELDS = 9  # parts of a form other than its images
_SLICE = 1 << 16
_NAME = f"part-{secrets.token_hex(16)}-"  # unguessable for clients
_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b"[]{},")))


@dataclass(frozen=True)
class Part:
    """An image within a body, not yet decoded."""

    data: memoryview
    encoding: Encoding = "file"


@dataclass(frozen=True)
class FormPart:
    """A part of multipart/form-data; `is_file` where it has a file name."""

    name: str
    is_file: bool
    data: memoryview


@dataclass(frozen=True)
class Content:
    """What was taken out of a body, as views of it."""

    images: Mapping[str, Part] = field(default_factory=dict)
    fields: Sequence[FormPart] = ()

    def release(self) -> None:
        """Release the body: whatever still refers to a part of it, such as a traceback, then holds no bytes."""
        for data in [*(part.data for part in self.images.values()), *(one.data for one in self.fields)]:
            with suppress(BufferError):  # a decoder that was just stopped still reads it
                data.release()


def open_body(content_type: str, body: bytes | bytearray, max_images: int) -> tuple[bytes, Content]:
    """The body for the parser, and what was taken out of it; `ApiError` where it exceeds a bound."""
    if content_type.lower().startswith("multipart/"):
        return b"", Content(fields=read_form(content_type, body, max_parts=max_images + OTHER_FIELDS))
    small, images = take_out_images(body)
    return small, Content(images)


def take_out_images(body: bytes | bytearray) -> tuple[bytes, dict[str, Part]]:
    """The body with a name in place of each long data URL, and what each name stands for.

    Raises `ApiError` where the rest is too large, too deep, or has too many values. A body that is not JSON is returned
    unchanged: the parser reports it.
    """
    parts: dict[str, Part] = {}
    kept: list[bytes | bytearray] = []
    kept_to = place = values = depth = quotes = 0
    while True:
        opening = body.find(b'"', place)
        for start in range(place, len(body) if opening < 0 else opening, _SLICE):
            stop = min(start + _SLICE, len(body) if opening < 0 else opening)
            structure = body[start:stop].translate(None, _NOT_STRUCTURE)
            values += len(structure)
            if values > MAX_VALUES:
                raise ApiError(400, "body_too_complex", f"the body has more than {MAX_VALUES} values: send fewer")
            depth = _depth_after(structure, depth)
        if opening < 0:
            break
        closing, seen = _end_of_string(body, opening + 1, MAX_QUOTES - quotes)
        quotes += seen + 1
        if quotes > MAX_QUOTES:
            raise ApiError(400, "body_too_complex", f"the body has more than {MAX_QUOTES} quotes: send fewer strings")
        if closing < 0:
            break
        if closing - opening > MIN_IMAGE_BYTES and body[opening + 1 : opening + 6].lower() == b"data:":
            name = f"{_NAME}{len(parts)}"
            parts[name] = Part(memoryview(body)[opening + 1 : closing], "json_data_url")
            kept += [body[kept_to : opening + 1], name.encode()]
            kept_to = closing
        place = closing + 1
    size = sum(map(len, kept)) + len(body) - kept_to
    if size > MAX_TEXT_BYTES:
        message = f"the body has {size} bytes without its images, at most {MAX_TEXT_BYTES}: images go as data URLs"
        raise ApiError(413, "body_too_large", message)
    return b"".join([*kept, body[kept_to:]]), parts


def is_name_of_part(text: str) -> bool:
    """Whether a string of a parsed body stands for an image that was taken out of it."""
    return text.startswith(_NAME)


def _depth_after(structure: bytes | bytearray, depth: int) -> int:
    for character in structure:
        depth += (character in b"[{") - (character in b"]}")
        if depth > MAX_DEPTH:
            raise ApiError(400, "body_too_complex", f"the body is nested more than {MAX_DEPTH} deep")
    return depth


def _end_of_string(body: bytes | bytearray, start: int, most: int) -> tuple[int, int]:
    """The index of the quote that ends a JSON string, or -1, and how many quotes were checked, at most `most` + 1."""
    place = start
    for seen in count(1):
        found = body.find(b'"', place)
        if found < 0 or seen > most:
            return -1, seen
        before = body[max(place, found - _SLICE) : found]
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes == _SLICE:
            raise ApiError(400, "body_too_complex", f"the body has {_SLICE} backslashes in a row")
        if backslashes % 2 == 0:
            return found, seen
        place = found + 1
    raise AssertionError


_BLANK_LINE = re.compile(rb"\r\n\r\n")


def read_form(content_type: str, body: bytes | bytearray, *, max_parts: int) -> list[FormPart]:
    """The parts of a multipart/form-data body, as views of it; `ApiError` where it is malformed."""
    head = Message()
    head["content-type"] = content_type
    try:
        boundary = head.get_boundary()
    except (ValueError, LookupError, TypeError) as error:  # in a character set that does not exist
        raise _invalid_form("its boundary cannot be read") from error
    if not boundary or len(boundary) > 70:
        raise _invalid_form("its Content-Type has no boundary of 1 to 70 characters")
    delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
    starts_at_once = body.startswith(delimiter[2:])
    opening = 0 if starts_at_once else _find(body, delimiter, 0) + 2
    if opening < 2 and not starts_at_once:
        raise _invalid_form("its boundary does not occur")
    place = opening + len(delimiter) - 2
    parts: list[FormPart] = []
    while body[place : place + 2] != b"--":
        end = _find(body, delimiter, place)
        if end < 0:
            raise _invalid_form("it is truncated: its last boundary is missing")
        if len(parts) == max_parts:
            raise ApiError(413, "too_many_images", f"more than {max_parts} parts: send several requests")
        parts.append(_read_part(body, place, end))
        place = end + len(delimiter)
    return parts


def _find(body: bytes | bytearray, needle: bytes, start: int) -> int:
    """`find` in slices, so that other threads can run even when crafted bytes make the search slow."""
    for place in range(start, len(body), _SLICE):
        found = body.find(needle, place, place + _SLICE + len(needle) - 1)
        if found >= 0:
            return found
    return -1


def _read_part(body: bytes | bytearray, start: int, end: int) -> FormPart:
    limit = min(
        end + 2, start + MAX_PART_HEADER_BYTES
    )  # a part may be empty: its blank line is then both start and end
    found = _BLANK_LINE.search(body, start, limit)
    if found is None:
        raise _invalid_form("the headers of a part have no end")
    headers = BytesHeaderParser().parsebytes(bytes(body[start : found.end()]).lstrip(b"\r\n"))
    try:
        name = headers.get_param("name", header="content-disposition")
        is_file = headers.get_filename() is not None
    except (ValueError, LookupError, TypeError) as error:  # parameters in a character set that does not exist
        raise _invalid_form("a part has a name that cannot be read") from error
    if not isinstance(name, str):
        raise _invalid_form("a part has no name")
    return FormPart(name, is_file, memoryview(body)[found.end() : max(end, found.end())])


def _invalid_form(reason: str) -> ApiError:
    return ApiError(400, "invalid_form", f"the form cannot be read: {reason}")
