"""A run without measures.json: nothing that it explains is checked, and what has to be confirmed is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apps.conftest import Running, data_url, make_photo
from tests.scripts.here import run_verb
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vlm_detect.infer.detector.ANSWER_TOKENS", 8)  # the random model ends no text by itself
    make_photo(3).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    "verb",
    [("chat", "IMAGE", "--only_confirmed"), ("scan", "IMAGE", "--explain", "--only_confirmed"),
     ("serve", "--port", 0, "--only_confirmed")],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_only_confirmed_sentences_are_refused(verb: tuple[Any, ...], model_folder: Path, image: Path) -> None:
    done = run_verb(*(image if one == "IMAGE" else one for one in verb), "--model", model_folder)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert f"only_confirmed: no sentence is checked: {model_folder} has no measures.json" in lines[0]
    assert "vlm-detect add-reasons" in lines[0]
    assert "p_fake" not in done.stdout


def test_explanations_say_once_that_nothing_is_checked(model_folder: Path, image: Path) -> None:
    done = run_verb("scan", image, "--explain", "--json", "--model", model_folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no sentence is checked") == 1
    assert "confirmed" not in done.stdout
    done = run_verb("scan", image, "--json", "--model", model_folder)
    assert "no sentence is checked" not in done.stderr


def test_a_conversation_says_so_too(model_folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detector, "stream_explanation", lambda self, *_: iter(["AI-generated. A dog."]))
    done = run_verb("chat", image, "--model", model_folder, stdin="/quit\n")
    assert done.returncode == 0, done.stderr
    assert "1. A dog. [not checked]" in done.stdout
    assert done.stdout.count("no sentence is checked") == 1


def test_requests_and_calls_are_refused(server: Running) -> None:
    url = data_url(make_photo(0))
    for path, body in (("/v1/verdict", {"explain": True}), ("/v1/explain", {}), ("/v1/explain", {"stream": True})):
        answer = httpx.post(f"{server.url}{path}", json={"image_url": url, "only_confirmed": True, **body})
        assert answer.status_code == 400
        assert "has no measures.json" in answer.json()["error"]["message"]
    verdict = server.detector(make_photo(0))
    with pytest.raises(UserError, match="only_confirmed: no sentence is checked"):
        verdict.explanation(only_confirmed=True)
    with pytest.raises(UserError, match="only_confirmed: no sentence is checked"):
        server.detector.explanations([verdict], only_confirmed=True)
