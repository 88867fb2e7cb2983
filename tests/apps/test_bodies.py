"""Bodies before they are parsed: images are taken out, and no number of values, strings or levels gets through."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from vlm_detect.apps import bodies
from vlm_detect.apps.asked import asked
from vlm_detect.apps.bodies import MAX_DEPTH, MAX_TEXT_BYTES, MAX_VALUES, Part, read_form, take_out_images
from vlm_detect.apps.errors import ApiError
from vlm_detect.apps.guard import Guard
from vlm_detect.apps.settings import ServerSettings
from vlm_detect.images.data_url import bytes_of_data_url

DATA = bytes(range(256)) * 16
URL = f"data:image/png;base64,{base64.b64encode(DATA).decode()}"


def refusal(body: bytes) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        take_out_images(body)
    return caught.value.status, caught.value.code


def put_back(small: bytes, parts: dict[str, Part]) -> bytes:
    for name, part in parts.items():
        small = small.replace(name.encode(), bytes(part.data))
    return small


@pytest.mark.parametrize(
    "value",
    [
        {"image_url": URL, "question": 'Is "this" real? \\'},
        {"images": [URL, "data:image/png;base64,short", URL], "model": None},
        {"messages": [{"content": [{"image_url": {"url": URL}}, {"text": "a\\\\" + '\\"' * 500}]}]},
        {"question": "data" + "x" * 5000, "other": URL.replace("data", "DATA")},
        [],
        "data",
        12.5,
    ],
)
@pytest.mark.parametrize("escape", [False, True])
def test_only_long_data_urls_are_extracted(value: Any, escape: bool) -> None:
    body = json.dumps(value).encode()
    body = body.replace(b"/", b"\\/") if escape else body
    small, parts = take_out_images(body)
    assert put_back(small, parts) == body
    assert len(parts) == json.dumps(value).lower().count(URL[:60].lower())
    assert len(small) < max(600 if parts else len(body) + 1, 6000)
    assert json.loads(put_back(small, parts)) == value
    for part in parts.values():
        assert bytes_of_data_url(bytes(part.data), escaped=True) == DATA


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\0", b'{"a', b'"', b'"\\', b'"\\"', b"]]]", json.dumps("é").encode()])
def test_invalid_json_is_left_to_the_parser(body: bytes) -> None:
    assert take_out_images(body) == (body, {})


@pytest.mark.parametrize(
    "body",
    [
        b'{"images":[' + b"0," * 1_000_000 + b"0]}",
        b'{"images":[' + b'"",' * 1_000_000 + b'""]}',
        b'{"images":[' + b"{}," * 1_000_000 + b"{}]}",
        b"{" + b",".join(b'"%d":0' % i for i in range(MAX_VALUES + 1)) + b"}",
        b'{"image_url":"' + b'\\"' * 1_000_000 + b'"}',
        b'{"image_url":"' + b"\\" * 1_000_000 + b'"}',
        b"[" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1),
        (b'{"a":[' * MAX_DEPTH)[: 6 * (MAX_DEPTH // 2 + 1)],
    ],
)
def test_more_values_strings_or_levels_than_any_request_has_are_refused(body: bytes) -> None:
    assert refusal(body) == (400, "body_too_complex")


def test_counting_stops_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    depth_after = bodies._depth_after
    monkeypatch.setattr(
        bodies, "_depth_after", lambda structure, depth: (looked_at.append(1), depth_after(structure, depth))[1]
    )
    assert refusal(b"[" + b"0," * 10_000_000) == (400, "body_too_complex")
    assert len(looked_at) < 4  # slices of 64 KB, of twenty megabytes


def test_text_outside_of_images_is_bounded() -> None:
    for body in (b'{"question":"%s"}', b'{"question":%s0}'):
        assert refusal(body % (b" " * MAX_TEXT_BYTES)) == (413, "body_too_large")
    fits = json.dumps({"question": "x" * (MAX_TEXT_BYTES - 100), "image_url": URL * 400}).encode()
    assert len(take_out_images(fits)[0]) < MAX_TEXT_BYTES


def test_usual_requests_pass_the_bounds() -> None:
    images = {"images": [URL] * 1000, "more": [[[{}]]] * 1000}
    small, parts = take_out_images(json.dumps(images).encode())
    assert len(parts) == 1000
    assert [type(name) for name in json.loads(small)["images"]] == [str] * 1000


def test_a_name_of_a_part_cannot_be_guessed() -> None:
    _, parts = take_out_images(json.dumps({"image_url": URL}).encode())
    (name,) = parts
    assert len(name) > 32
    assert bodies.is_name_of_part(name)
    assert not bodies.is_name_of_part("part-0")


def answered(guard_settings: ServerSettings, chunks: list[bytes], content_type: str) -> tuple[bytes, dict[str, Part]]:
    """What the application behind the guard gets of a body: its bytes, and the parts that were taken out."""
    found: list[tuple[bytes, dict[str, Part]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        found.append((message["body"], dict(asked().content.images)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    messages = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)} for i, chunk in enumerate(chunks)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"content-type", content_type.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/verdict", "headers": headers, "query_string": b""}
    asyncio.run(Guard(app, guard_settings, None)(scope, receive, send))
    return found[0]


def test_no_parser_gets_an_image() -> None:
    body = json.dumps({"images": [URL * 200, URL]}).encode()
    chunks = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    for content_type in ("application/json", "", "text/plain", "application/vnd.api+json"):
        small, parts = answered(ServerSettings(), chunks, content_type)
        assert (len(parts), len(small) < 200) == (2, True)
    assert answered(ServerSettings(), [form((FILE, DATA))], "multipart/form-data; boundary=b") == (b"", {})


def test_a_body_is_freed_when_it_is_answered() -> None:
    body = bytearray(json.dumps({"images": [URL] * 5}).encode())
    _, content = bodies.open_body("application/json", body, 32)
    with pytest.raises(BufferError):
        body.clear()
    content.release()
    body.clear()
    for fields in ([(FILE, DATA)], [(FILE, DATA)] * 50):
        body = bytearray(form(*fields))
        with contextlib.suppress(ApiError):
            bodies.open_body("multipart/form-data; boundary=b", body, 32)[1].release()
            body.clear()


# Forms


def form(*parts: tuple[str, bytes], boundary: str = "b", end: str = "\r\n") -> bytes:
    lines = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts)
    return lines + f"--{boundary}--{end}".encode()


def read(body: bytes, content_type: str = "multipart/form-data; boundary=b", most: int = 40) -> list[Any]:
    return [(part.name, part.is_file, bytes(part.data)) for part in read_form(content_type, body, max_parts=most)]


NAMED = 'Content-Disposition: form-data; name="{}"'
FILE = 'Content-Type: image/png\r\nCONTENT-disposition: form-data; name=image; filename="a; b\\".png"'


def test_the_parts_of_a_form() -> None:
    body = form((FILE, b"\r\n--\r\n--c\r\n" + DATA), (NAMED.format("model"), b"nano"), (NAMED.format("image"), b""))
    expected = [("image", True, b"\r\n--\r\n--c\r\n" + DATA), ("model", False, b"nano"), ("image", False, b"")]
    assert read(body) == expected
    assert read(b"a preamble\r\n" + body + b"an epilogue") == expected
    assert read(form((FILE, b"x"), boundary="a b'c", end=""), 'multipart/form-data; boundary="a b\'c"') == [
        ("image", True, b"x")
    ]
    assert read(form()) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form((FILE, DATA)), "multipart/form-data"),
        (form((FILE, DATA)), "multipart/form-data; boundary="),
        (form((FILE, DATA)), f"multipart/form-data; boundary={'b' * 71}"),
        (form((FILE, DATA)), "multipart/form-data; boundary=c"),
        (form((FILE, DATA))[:-6], "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=b"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"--b\r\nno end of the headers", "multipart/form-data; boundary=b"),
        (form(("X: " + "y" * 9000, DATA)), "multipart/form-data; boundary=b"),
        (form(("Content-Disposition: form-data", DATA)), "multipart/form-data; boundary=b"),
        (form(("", DATA)), "multipart/form-data; boundary=b"),
        (form(("Content-Disposition: form-data; name*=nothing'%ff'%ff", DATA)), "multipart/form-data; boundary=b"),
    ],
)
def test_an_invalid_form_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(body, content_type)
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


def test_too_many_parts_are_refused_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read_part = bodies._read_part
    monkeypatch.setattr(bodies, "_read_part", lambda *args: (reads.append(1), read_part(*args))[1])
    with pytest.raises(ApiError) as caught:
        read(form(*[(NAMED.format("image"), b"")] * 1000), most=5)
    assert (caught.value.status, len(reads)) == (413, 5)


def test_a_boundary_is_found_across_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SLICE", 7)
    for size in range(30):
        body = form((FILE, b"\r\n-" * size), (NAMED.format("model"), b"x"))
        assert read(body) == [("image", True, b"\r\n-" * size), ("model", False, b"x")]
