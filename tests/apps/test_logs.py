"""Request ids, and the log of a server as text and as JSON lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from tests.apps.conftest import data_url, make_photo, serving
from vlm_detect.apps.logs import set_up_logs
from vlm_detect.apps.tasks import Judge
from vlm_detect.infer.detector import Detector


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("vlm_detect", "python_multipart"))]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def broken(self: Judge, jobs: object) -> Iterator[None]:
    raise RuntimeError("the model broke")
    yield


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failure_is_logged_with_the_id_that_its_client_sees(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setattr(Judge, "lane", broken)
    with serving(detector) as running:
        set_up_logs(as_json)
        body = {"image_url": data_url(make_photo(0))}
        answer = httpx.post(f"{running.url}/v1/verdict", json=body, headers={"x-request-id": "mine-1"}, timeout=60)
        missing = httpx.get(f"{running.url}/secret-path")
        figures = httpx.get(f"{running.url}/metrics").text
    assert 'vlm_detect_requests_total{route="/v1/verdict",status="500"} 1.0' in figures
    assert "nosniff" in answer.headers["x-content-type-options"]
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-1")
    err = capsys.readouterr().err
    assert "secret-path" not in err
    if not as_json:
        assert "[mine-1] a job failed\nTraceback" in err
        assert missing.headers["x-request-id"] not in err  # errors only
        return
    failed, refused, seen, unseen, _ = [json.loads(line) for line in err.splitlines()]
    assert [line["message"] for line in (failed, refused, seen)] == ["a job failed", "a request failed", "request"]
    assert {line["request_id"] for line in (failed, refused, seen)} == {"mine-1"}
    assert "RuntimeError: the model broke" in failed["traceback"]
    assert (seen["route"], seen["method"], seen["status"]) == ("/v1/verdict", "POST", 500)
    assert (unseen["route"], unseen["status"]) == ("other", 404)
    assert unseen["request_id"] == missing.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a b", "x" * 65, "a\x7f", ""])
def test_an_unusable_id_is_replaced(server, given: str) -> None:
    found = [httpx.get(f"{server.url}/healthz", headers={"x-request-id": given}) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in found}
    assert given not in ids
    assert len(ids) == 2
