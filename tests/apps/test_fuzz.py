"""Hostile requests: whatever is sent, the server refuses it or answers it, in one shape, and holds on to nothing.

`pytest -m slow tests/apps/test_fuzz.py` sends 2,000 malformed images and bodies; the short one sends a tenth of that.
"""

from __future__ import annotations

import base64
import gc
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from tests.apps.conftest import Running, data_url, file_bytes, make_photo, serving, until
from vlm_detect.infer.detector import Detector

pytest.importorskip("hypothesis", reason="needs schemathesis")
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
ROUTES = ("query", "caption", "verdict", "explain", "evidence", "chat/completions")
ALLOWED_5XX = {501, 503}


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code in ALLOWED_5XX, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def running(detector: Detector):
    with serving(detector, max_new_tokens=2, max_pixels=1_000_000, deadline_s=20) as running:
        yield running


def test_the_schema_holds_under_schemathesis(running: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    checks = [schemathesis.checks.not_a_server_error, schemathesis.checks.status_code_conformance]
    statuses: Counter[int] = Counter()

    def run(case: Any) -> None:
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        if response.status_code not in ALLOWED_5XX:
            case.validate_response(response, checks=checks)

    few = settings(
        max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    for operation in schema.get_all_operations():
        few(given(case=operation.ok().as_strategy())(run))()
    assert statuses[200] >= 3  # the routes that ask for nothing
    assert statuses[400] > 20


def malformed(rng: random.Random) -> tuple[str, bytes, str]:
    """A route, a body and its content type: mutated images, mutated JSON, JSON of wrong types, and noise."""
    route = f"/v1/{rng.choice(ROUTES)}"
    kind = rng.choice(["image", "image", "json", "types", "noise", "form"])
    photo = make_photo(rng.randrange(4))
    if kind == "image":
        body = _body(
            route, data_url(_mutate(file_bytes(photo, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF"])), rng))
        )
        return route, json.dumps(body).encode(), "application/json"
    if kind == "json":
        return route, _mutate(json.dumps(_body(route, data_url(photo))).encode(), rng), "application/json"
    if kind == "types":
        return route, json.dumps(_odd(_body(route, data_url(photo)), rng)).encode(), "application/json"
    if kind == "form":
        content = (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
            + file_bytes(photo)
            + b"\r\n--b--"
        )
        return "/v1/verdict", _mutate(content, rng), "multipart/form-data; boundary=b"
    return route, rng.randbytes(rng.randrange(2000)), rng.choice(["application/json", "text/plain", "", "image/png"])


def _body(route: str, url: str) -> dict:
    if route.endswith("completions"):
        image = {"type": "image_url", "image_url": {"url": url}}
        return {"model": "x", "messages": [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]}
    return {"image_url": url, "question": "What?", "stream": False, "settings": {"temperature": 0.5}}


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a part cut out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    start = rng.randrange(len(changed))
    match rng.randrange(4):
        case 0:
            del changed[start : start + rng.randrange(50)]
        case 1:
            changed[start:start] = changed[start : start + rng.randrange(200)]
        case 2:
            del changed[start:]
    return bytes(changed)


ODD = [
    None,
    True,
    -1,
    1e308,
    "",
    "x" * 3000,
    "\ud800",
    "\x00<|endoftext|>",
    [],
    {},
    [[]] * 50,
    "data:image/png;base64,",
    2**80,
]


def _odd(value, rng: random.Random):
    """One value somewhere inside replaced by another type's."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return {**value, key: _odd(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], _odd(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def send(running: Running, count: int, seed: int) -> Counter[int]:
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=running.url, timeout=60) as http:
        for _ in range(count):
            route, content, kind = malformed(rng)
            answer = http.post(route, content=content, headers={"content-type": kind} if kind else {})
            check(answer)
            statuses[answer.status_code] += 1
        good = http.post("/v1/verdict", json={"image_url": data_url(make_photo(0))})
        assert good.status_code == 200
    until(lambda: running.worker.n_held == 0)
    return statuses


def test_malformed_images_and_bodies(running: Running) -> None:
    statuses = send(running, 200, seed=0)
    assert statuses[400] > 60
    assert statuses[200] > 10  # some mutations are harmless: the fuzz reaches the models too


@pytest.mark.slow
def test_two_thousand_of_them_leak_no_memory(running: Running) -> None:
    running.detector.engine.memory.max_bytes = 0  # kept prefixes are no leak
    send(running, 400, seed=1)
    gc.collect()
    before = psutil.Process().memory_info().rss
    send(running, 2000, seed=2)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    assert grown < 32 << 20, f"{grown / 2**20:.0f} MiB more than before"


@pytest.mark.parametrize("seed", range(3))
def test_hostile_corpora_of_the_decoder(running: Running, seed: int, tmp_path: Path) -> None:
    """A header that announces more pixels than there may be, an animation, a TIFF that points nowhere."""
    frames = [make_photo(i) for i in range(40)]
    bombs = [
        file_bytes(Image.new("1", (30_000, 30_000))),
        _gif(frames, tmp_path),
        file_bytes(make_photo(0), "TIFF")[:60] + b"\xff" * 500,
    ]
    url = f"data:image/png;base64,{base64.b64encode(bombs[seed]).decode()}"
    answer = httpx.post(f"{running.url}/v1/verdict", json={"image_url": url}, timeout=60)
    assert answer.status_code == (400, 200, 400)[seed]  # of an animation the first frame is judged
    check(answer)


def _gif(frames, tmp_path: Path) -> bytes:
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    return (tmp_path / "x.gif").read_bytes()
