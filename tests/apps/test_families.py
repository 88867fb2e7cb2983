"""The server answers with any model family: one tiny checkpoint of each, asked together, mapped and streamed."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.apps.conftest import data_url, make_photo, serving
from tests.models.tiny_chat import ARCHITECTURES, save_tiny
from vlm_detect.infer.detector import Detector

moondream = pytest.importorskip("moondream", reason="needs the moondream client (pip install --no-deps moondream)")
# transformers' PaliGemma processor hands tensors to numpy in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_is_served(architecture: str, tmp_path: Path) -> None:
    detector = Detector(str(save_tiny(architecture, tmp_path)), device="cpu")
    photos = [make_photo(seed) for seed in range(2)]
    alone = [detector(photo).p_fake for photo in photos]
    with serving(detector) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        found = http.post("/v1/verdict", json={"images": [data_url(photo) for photo in photos]}).json()
        assert [one["p_fake"] for one in found["verdicts"]] == pytest.approx(alone, abs=1e-5)
        evidence = http.post("/v1/evidence", json={"image_url": data_url(photos[0])}).json()
        assert evidence["layer"].startswith("data:image/png;base64,")
        assert max(abs(value) for row in evidence["values"] for value in row) > 1e-4
        client = moondream.vl(endpoint=f"{server.url}/v1")
        answer = client.query(photos[0], "What is it?", settings={"max_tokens": 4})["answer"]
        pieces = client.query(photos[0], "What is it?", stream=True, settings={"max_tokens": 4})["answer"]
        assert "".join(pieces) == answer
        # What only a moondream2 can do is refused by name.
        image = {"image_url": data_url(photos[0])}
        for path, body in (
            ("/v1/detect", {**image, "object": "dog"}),
            ("/v1/gaze", {**image, "eye": {"x": 0.5, "y": 0.5}}),
            ("/v1/query", {**image, "question": "?", "reasoning": True}),
            ("/v1/query", {**image, "question": "?", "spatial_refs": [[0.5, 0.5]]}),
            ("/v1/query", {"question": "?"}),
        ):
            refused = http.post(path, json=body)
            assert refused.status_code == 400
            message = refused.json()["error"]["message"]
            assert "use a moondream2 as --model" in message or "give an image with the question" in message


def test_a_shape_that_the_model_refuses_is_refused_alone(tmp_path: Path) -> None:
    detector = Detector(str(save_tiny("qwen2_5_vl", tmp_path)), device="cpu")
    tall, photo = make_photo(1, (4, 1000)), make_photo(2, (40, 40))
    with serving(detector) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        both = http.post("/v1/verdict", json={"images": [data_url(tall), data_url(photo)]})
        assert both.status_code == 200
        refused, judged = both.json()["verdicts"]
        assert refused["error"]["code"] == "shape"
        assert judged["p_fake"] == pytest.approx(detector(photo).p_fake, abs=1e-5)
        for route, body in {
            "/v1/verdict": {"image_url": data_url(tall)},
            "/v1/query": {"image_url": data_url(tall), "question": "What is it?"},
            "/v1/caption": {"image_url": data_url(tall), "stream": False},
            "/v1/explain": {"image_url": data_url(tall)},
            "/v1/evidence": {"image_url": data_url(tall)},
        }.items():
            found = http.post(route, json=body)
            assert (found.status_code, found.json()["error"]["code"]) == (400, "shape"), route
            assert "4x1000" in found.json()["error"]["message"]
