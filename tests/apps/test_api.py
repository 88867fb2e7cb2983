"""The routes by the clients that people have, and by bad requests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.apps.conftest import Running, data_url, file_bytes, make_photo, serving
from vlm_detect.apps.tasks import Answer, Write
from vlm_detect.apps.worker import Job
from vlm_detect.errors import UserError
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.endpoint import Endpoint
from vlm_detect.infer.reasoning import reason_steps
from vlm_detect.infer.reference import plain_inputs
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.model import new_model
from vlm_detect.models.regions import Point
from vlm_detect.stats.calibration import Calibration

moondream = pytest.importorskip("moondream", reason="needs the moondream client (pip install --no-deps moondream)")
openai = pytest.importorskip("openai", reason="needs the openai client")


@pytest.fixture(scope="module")
def http(server: Running):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


# Clients


def test_moondreams_own_client(server: Running, photo: Image.Image) -> None:
    client = moondream.vl(endpoint=f"{server.url}/v1")
    # The client sends JPEG of quality 95, so the answer is compared between its own two ways.
    answer = client.query(photo, "What is it?", settings={"max_tokens": 9})["answer"]
    pieces = list(client.query(photo, "What is it?", stream=True, settings={"max_tokens": 9})["answer"])
    assert answer
    assert "".join(pieces) == answer
    caption = client.caption(photo, length="short")["caption"]
    assert "".join(client.caption(photo, length="short", stream=True)["caption"]) == caption


def as_sent(photo: Image.Image) -> Image.Image:
    """What arrives of a photo that moondream's client sends."""
    return Image.open(io.BytesIO(file_bytes(photo, "JPEG", quality=95)))


def test_moondreams_client_finds_objects(server: Running, photo: Image.Image) -> None:
    client = moondream.vl(endpoint=f"{server.url}/v1")
    engine = server.detector.engine
    objects = client.detect(photo, "dog", settings={"max_objects": 3})["objects"]
    ((boxes,),) = engine.detect([as_sent(photo)], [["dog"]], max_objects=3)
    assert objects == [pytest.approx(box._asdict(), abs=1e-6) for box in boxes]
    points = client.point(photo, "dog", settings={"max_objects": 2})["points"]
    ((expected,),) = engine.point([as_sent(photo)], [["dog"]], max_objects=2)
    assert points == [pytest.approx(point._asdict(), abs=1e-6) for point in expected]
    assert (len(objects), len(points)) == (3, 2)


def test_moondreams_client_asks_about_places_and_without_an_image(server: Running, photo: Image.Image) -> None:
    client = moondream.vl(endpoint=f"{server.url}/v1")
    references = [[0.25, 0.5], [0.1, 0.2, 0.6, 0.9]]
    answer = client.query(photo, "What is it?", spatial_refs=references)["answer"]
    assert answer == server.detector.ask(as_sent(photo), "What is it?", 12, references)
    assert answer != client.query(photo, "What is it?")["answer"]
    assert client.query(question="What is a dog?")["answer"] == server.detector.ask(None, "What is a dog?", 12)
    pieces = client.query(question="What is a dog?", stream=True)["answer"]
    assert "".join(pieces) == server.detector.ask(None, "What is a dog?", 12)


def test_moondreams_client_gets_the_reasoning(server: Running, photo: Image.Image) -> None:
    client = moondream.vl(endpoint=f"{server.url}/v1")
    found = client.query(photo, "How many?", reasoning=True, spatial_refs=[[0.25, 0.5]])
    engine = server.detector.engine
    prompt = [[engine.vlm.processor.reasoning_ids("How many?", [[0.25, 0.5]])]]
    *_, (((text,),)) = reason_steps(engine.vlm, engine.prefixes([as_sent(photo)]), prompt, [[12]])
    expected = text.read(engine.vlm)
    assert (found["answer"], found["reasoning"]["text"]) == (expected.answer, expected.reasoning.text)
    assert expected.n_tokens[0], "nothing was thought"
    pieces = client.query(photo, "How many?", reasoning=True, stream=True)["answer"]
    assert "".join(pieces) == client.query(photo, "How many?", reasoning=True)["answer"]

    client = moondream.vl(endpoint=f"{server.url}/v1", model=server.detector.name)
    messages = [{"role": "user", "content": "What is a dog?"}]
    message = client.chat(messages, reasoning=True, settings={"max_tokens": 6})["message"]
    ((alone,),) = engine.reason([None], [["What is a dog?"]], 6)
    assert (message["content"], message["reasoning"]) == (alone.answer, alone.reasoning.text)
    assert message["reasoning_details"] == {"grounding": []}


def test_a_gaze(server: Running, http: httpx.Client, photo: Image.Image) -> None:
    engine = server.detector.engine
    body = {"image_url": data_url(photo), "force_detect": True}
    found = http.post("/v1/gaze", json={**body, "eye": {"x": 0.25, "y": 0.5}}).json()["gaze"]
    ((expected,),) = engine.gaze([photo], [[Point(0.25, 0.5)]], force=True)
    assert found == pytest.approx(expected._asdict(), abs=1e-6)
    face = {"x_min": 0.2, "y_min": 0.2, "x_max": 0.5, "y_max": 0.6}
    steady = http.post("/v1/gaze", json={**body, "face": face}).json()["gaze"]
    assert set(steady) == {"x", "y"}


def test_objects_of_a_batch_equal_those_alone(server: Running) -> None:
    photos, phrases = [make_photo(seed) for seed in range(3)], ["dog", "a red car", "x"]

    async def ask() -> list[dict]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            bodies = [
                {"image_url": data_url(photo), "object": phrase, "settings": {"max_objects": i + 1}}
                for i, (photo, phrase) in enumerate(zip(photos, phrases, strict=True))
            ]
            answers = await asyncio.gather(*(client.post("/v1/detect", json=body) for body in bodies))
        return [answer.json() for answer in answers]

    for i, found in enumerate(asyncio.run(ask())):
        ((boxes,),) = server.detector.engine.detect([photos[i]], [[phrases[i]]], max_objects=i + 1)
        assert found["objects"] == [pytest.approx(box._asdict(), abs=1e-6) for box in boxes]
        assert found["finish_reason"] == ("length" if len(boxes) == i + 1 else "stop")


def openai_client(server: Running, key: str = "unused"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def conversation(photo: Image.Image, question: str = "What is it?") -> list:
    image = {"type": "image_url", "image_url": {"url": data_url(photo)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def test_the_openai_client(server: Running, photo: Image.Image) -> None:
    client = openai_client(server)
    (model,) = client.models.list()
    assert model.id == server.detector.name
    assert client.models.retrieve(model.id).id == model.id
    answer = client.chat.completions.create(model=model.id, messages=conversation(photo), max_tokens=9)
    expected = server.detector.ask(photo, "What is it?", 9)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 9
    stream = client.chat.completions.create(
        model=model.id,
        messages=conversation(photo),
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage == answer.usage


def test_a_follow_up_asks_about_the_previous_image(server: Running, photo: Image.Image) -> None:
    messages = [*conversation(photo), {"role": "assistant", "content": "x"}, {"role": "user", "content": "Why?"}]
    client = openai_client(server)
    answer = client.chat.completions.create(model=server.detector.name, messages=messages, max_tokens=5)
    assert answer.choices[0].message.content == server.detector.ask(photo, "Why?", 5)


def test_openai_errors_are_the_clients_own(server: Running, photo: Image.Image) -> None:
    client = openai_client(server)
    with pytest.raises(openai.NotFoundError, match="no model named 'other'"):
        client.chat.completions.create(model="other", messages=conversation(photo))
    with pytest.raises(openai.BadRequestError, match="last message must be the user's"):
        client.chat.completions.create(model=server.detector.name, messages=[{"role": "system", "content": "Hi"}])
    address = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/x.png"}}]
    with pytest.raises(openai.BadRequestError, match="URLs and paths are not opened"):
        client.chat.completions.create(
            model=server.detector.name,
            messages=[{"role": "user", "content": [*address, {"type": "text", "text": "?"}]}],
        )


def test_sampling_follows_temperature(server: Running, photo: Image.Image) -> None:
    client = openai_client(server)

    def ask(temperature: float, top_p: float = 1.0) -> str:
        answer = client.chat.completions.create(
            model=server.detector.name, messages=conversation(photo), temperature=temperature, top_p=top_p
        )
        return answer.choices[0].message.content

    greedy = ask(0)
    assert ask(0) == ask(2, top_p=1e-6) == greedy
    assert len({ask(2) for _ in range(4)}) > 1


# Ours


def test_a_verdict_by_json_and_by_form_is_the_detectors(server: Running, http: httpx.Client, photo) -> None:
    expected = server.detector(photo)
    by_json = http.post("/v1/verdict", json={"image_url": data_url(photo)}).json()
    by_form = http.post("/v1/verdict", files={"image": ("x.png", file_bytes(photo))}).json()
    assert by_json == by_form
    assert by_json["p_fake"] == pytest.approx(expected.p_fake, abs=1e-5)
    assert {"label", "calibrated", "threshold", "unsure_band", "model", "version", "provenance"} <= set(by_json)
    assert (by_json["reliable"], by_json["why_unsure"], by_json["max_fpr"]) == (True, None, None)
    assert (by_json["width"], by_json["height"]) == photo.size


def test_a_batch_lists_the_bad_image_among_the_good(server: Running, http: httpx.Client) -> None:
    photos = [make_photo(i) for i in range(3)]
    urls = [data_url(photos[0]), data_url(b"no image"), data_url(photos[1]), data_url(photos[2])]
    found = http.post("/v1/verdict", json={"images": urls}).json()["verdicts"]
    assert found[1]["error"]["code"] == "not_an_image"
    expected = [verdict.p_fake for verdict in server.detector.judge(photos)]
    assert [found[i]["p_fake"] for i in (0, 2, 3)] == pytest.approx(expected, abs=1e-5)
    files = [("image", (f"{i}.png", file_bytes(photo))) for i, photo in enumerate(photos)]
    assert [v["p_fake"] for v in http.post("/v1/verdict", files=files).json()["verdicts"]] == pytest.approx(expected)


def test_an_explanation_whole_and_streamed(server: Running, http: httpx.Client, photo: Image.Image) -> None:
    whole = http.post("/v1/explain", json={"image_url": data_url(photo)}).json()
    assert whole["explanation"] == server.detector(photo).explain(12)
    events = stream(http, "/v1/explain", {"image_url": data_url(photo), "stream": True})
    assert "".join(event["chunk"] for event in events) == whole["explanation"]
    assert events[-1]["completed"]
    assert events[-1] == {"chunk": "", "completed": True, **whole}


def said_of(monkeypatch: pytest.MonkeyPatch, detector: Detector, measures: MeasureCalibration, said: str) -> None:
    """The detector's measures, and what it writes about every image."""
    monkeypatch.setattr(detector, "measures", measures)

    def lane(self: Write, jobs: Sequence[Job]) -> Iterator[None]:
        for job in jobs:
            beginning, _ = job.task.prompt(job.detector)
            job.emit(text := f"{beginning} {said}".strip())
            job.done(Answer(text, 1, 1, False))
        yield

    monkeypatch.setattr(Write, "lane", lane)


SAID = (
    "Its noise is stronger than in nine of ten photos of this size. "
    "Its noise is weaker than in nine of ten photos of this size. A dog."
)
STATUSES = ["confirmed", "contradicted", "unchecked"]


def test_reasons_with_verdicts_explanations_and_in_a_stream(
    server: Running, http: httpx.Client, measures: MeasureCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_of(monkeypatch, server.detector, measures, SAID)
    photos = [make_photo(i) for i in range(2)]
    urls = [data_url(photos[0]), data_url(b"no image"), data_url(photos[1])]
    plain = http.post("/v1/verdict", json={"images": urls}).json()["verdicts"]
    first, bad, second = http.post("/v1/verdict", json={"images": urls, "explain": True}).json()["verdicts"]
    assert bad == plain[1]
    for found, photo, verdict in ((first, photos[0], plain[0]), (second, photos[1], plain[2])):
        expected = server.detector(photo).check(found["explanation"])
        assert found["reasons"] == [reason.to_json() for reason in expected.reasons]
        assert [reason["status"] for reason in found["reasons"][:3]] == STATUSES
        assert {name: found[name] for name in verdict} == {**verdict, "contradictions": found["contradictions"]}
    by_form = http.post("/v1/verdict", files={"image": ("x.png", file_bytes(photos[0]))}, data={"explain": "true"})
    assert by_form.json()["reasons"] == first["reasons"]
    alone = http.post("/v1/explain", json={"image_url": urls[0]}).json()
    assert (alone["explanation"], alone["reasons"]) == (first["explanation"], first["reasons"])
    *pieces, last = stream(http, "/v1/explain", {"image_url": urls[0], "stream": True})
    assert "".join(piece["chunk"] for piece in pieces) == last["explanation"] == first["explanation"]
    assert last["reasons"] == first["reasons"]


def test_only_confirmed_by_request_and_by_the_server(
    server: Running, http: httpx.Client, measures: MeasureCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_of(monkeypatch, server.detector, measures, SAID)
    url = data_url(make_photo(0))
    bodies = [
        http.post("/v1/verdict", json={"image_url": url, "explain": True, "only_confirmed": True}).json(),
        *stream(http, "/v1/explain", {"image_url": url, "stream": True, "only_confirmed": True}),
    ]
    with serving(server.detector, only_confirmed=True) as careful:
        bodies += [
            httpx.post(f"{careful.url}/v1/verdict", json={"image_url": url, "explain": True}).json(),
            httpx.post(f"{careful.url}/v1/explain", json={"image_url": url}).json(),
        ]
    assert len(bodies) == 4, "a stream gives nothing away before it is checked"
    for body in bodies:
        assert {reason["status"] for reason in body["reasons"]} == {"confirmed"}
        assert "dog" not in body["explanation"]


def test_a_failed_explanation_affects_only_its_image(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Detector.explanation_prompt
    tall = make_photo(1, (20, 30))

    def refused(self: Detector, label: str) -> tuple[str, list[int]]:
        raise UserError("no room")

    monkeypatch.setattr(Detector, "explanation_prompt", refused)
    found = http.post("/v1/verdict", json={"images": [data_url(tall)], "explain": True}).json()["verdicts"]
    assert found[0]["error"]["message"] == "no room"
    monkeypatch.setattr(Detector, "explanation_prompt", prompt)


def stream(http: httpx.Client, path: str, body: dict) -> list[dict]:
    with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_an_evidence_map(server: Running, http: httpx.Client, photo: Image.Image) -> None:
    found = http.post("/v1/evidence", json={"image_url": data_url(photo)}).json()
    expected = server.detector(photo).map()
    np.testing.assert_allclose(found["values"], expected.values, atol=1e-4)
    assert found["peak"] == pytest.approx(expected.peak)
    assert found["layer"].startswith("data:image/png;base64,")


def test_health_metrics_and_headers(server: Running, http: httpx.Client) -> None:
    answer = http.get("/healthz")
    assert answer.json()["status"] == "ok"
    assert http.get("/readyz").json()["status"] == "ready"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    figures = http.get("/metrics").text
    assert 'vlm_detect_requests_total{route="/healthz",status="200"}' in figures
    assert "# TYPE vlm_detect_batch_size histogram" in figures


# Refusals

IMAGE = data_url(make_photo(0))
TALL = data_url(Image.new("L", (20000, 3000)))


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/query", {"image_url": IMAGE, "question": " "}, 400, "empty_question"),
        ("/v1/query", {"image_url": IMAGE, "question": "x" * 5000}, 400, "question_too_long"),
        ("/v1/query", {"image_url": IMAGE, "question": "x" * 600}, 400, "invalid_request"),
        ("/v1/query", {"question": "What?", "spatial_refs": [[0.1, 0.1]]}, 400, "no_image"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "spatial_refs": [[0.5]]}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "spatial_refs": [[0.5, 1.5]]}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "spatial_refs": [[0, 0, 1]]}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE, "question": " ", "reasoning": True}, 400, "empty_question"),
        ("/v1/query", {"image_url": IMAGE, "question": "x" * 600, "reasoning": True}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "settings": {"variant": "a"}}, 501, "not_implemented"),
        ("/v1/detect", {"image_url": IMAGE, "object": " "}, 400, "empty_object"),
        ("/v1/detect", {"image_url": IMAGE, "object": "x" * 5000}, 400, "object_too_long"),
        ("/v1/detect", {"image_url": IMAGE, "object": "x" * 600}, 400, "invalid_request"),
        ("/v1/detect", {"object": "dog"}, 400, "invalid_request"),
        ("/v1/point", {"image_url": IMAGE, "object": "dog", "spatial_refs": [[0, 0]]}, 501, "not_implemented"),
        ("/v1/segment", {"image_url": IMAGE, "object": "dog"}, 501, "not_implemented"),
        ("/v1/gaze", {"image_url": IMAGE}, 400, "invalid_request"),
        ("/v1/gaze", {"image_url": IMAGE, "eye": {"x": 2, "y": 0}}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE}, 400, "invalid_request"),
        ("/v1/query", {"image_url": IMAGE, "question": "a\ud800"}, 400, "invalid_request"),
        ("/v1/query", {"image_url": "file:///etc/passwd", "question": "?"}, 400, "not_a_data_url"),
        ("/v1/query", {"image_url": "data:image/png;base64,@@@@", "question": "?"}, 400, "invalid_base64"),
        ("/v1/query", {"image_url": data_url(b"\x89PNG"), "question": "?"}, 400, "not_an_image"),
        ("/v1/query", {"image_url": TALL, "question": "?"}, 400, "too_large"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "model": "x"}, 404, "model_not_found"),
        ("/v1/query", {"image_url": IMAGE, "question": "?", "settings": {"temperature": -1}}, 400, "invalid_request"),
        ("/v1/caption", {"image_url": IMAGE, "length": "endless"}, 400, "invalid_request"),
        ("/v1/verdict", {}, 400, "no_image"),
        ("/v1/verdict", {"images": []}, 400, "no_image"),
        ("/v1/verdict", {"images": [IMAGE] * 33}, 413, "too_many_images"),
        ("/v1/verdict", [], 400, "invalid_request"),
        ("/v1/evidence", {"image_url": IMAGE, "topic": "x"}, 400, "invalid_request"),
        ("/v1/none", {}, 404, "not_found"),
    ],
)
def test_bad_requests_are_refused_in_one_shape(http: httpx.Client, path, body, status, code) -> None:
    answer = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"", "application/json", 400),
        (b"x", "text/plain", 415),
        (b"x", "multipart/form-data", 400),
        (b"--x\r\n\r\nx", "multipart/form-data; boundary=x", 400),
    ],
)
def test_broken_bodies_are_refused(http: httpx.Client, content: bytes, kind: str, status: int) -> None:
    answer = http.post("/v1/verdict", content=content, headers={"content-type": kind})
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def chat(*content: object) -> dict:
    return {"model": "x", "messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": list(content)}]}


@pytest.mark.parametrize(
    ("content", "place", "wanted"),
    [
        ({"type": "image_url", "image_url": IMAGE}, "messages[1].content[0].image_url", '"image_url": {"url": "data:'),
        ({"type": "image_url"}, "messages[1].content[0].image_url", '"image_url": {"url": "data:'),
        ({"type": "image_url", "image_url": {"url": 7}}, "messages[1].content[0].image_url", "an image part is"),
        ({"type": "input_image", "image_url": IMAGE}, "messages[1].content[0]", "has type 'input_image': a part is"),
        ({"type": "image", "source": {"data": "x"}}, "messages[1].content[0]", "has type 'image': a part is"),
        ({"type": "text", "text": None}, "messages[1].content[0].text", 'a text part is {"type": "text"'),
        ({"text": "Hi"}, "messages[1].content[0]", "has no type: a part is"),
        ("Hi", "messages[1].content[0]", "has no type: a part is"),
    ],
)
def test_errors_about_wrong_parts_give_their_place_and_the_expected_form(
    http: httpx.Client, content: object, place: str, wanted: str
) -> None:
    error = http.post("/v1/chat/completions", json=chat(content)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_content_part", place)
    assert error["message"].startswith(place)
    assert wanted in error["message"]


def test_errors_about_content_of_another_kind_give_its_place(http: httpx.Client) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": 7}]}
    error = http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["message"].startswith("messages[0].content: give a text, or a list of parts")
    body = {"model": "x", "messages": [{"role": "robot", "content": "Hi"}]}
    assert http.post("/v1/chat/completions", json=body).json()["error"]["param"] == "messages[0].role"
    assert http.post("/v1/verdict", json={"images": [IMAGE, 0]}).json()["error"]["param"] == "images[1]"


def test_logprobs_are_those_of_the_model(server: Running, photo: Image.Image) -> None:
    client, vlm = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none"), server.detector.engine.vlm
    content = [{"type": "image_url", "image_url": {"url": data_url(photo)}}, {"type": "text", "text": "What is it?"}]
    ask: dict[str, Any] = {"model": server.detector.name, "messages": [{"role": "user", "content": content}]}
    ask |= {"max_tokens": 5, "logprobs": True, "top_logprobs": 3, "temperature": 0}
    found = client.chat.completions.create(**ask).choices[0].logprobs.content
    prompt, answer = vlm.question_ids("What is it?"), []
    for one in found:
        with torch.inference_mode():
            logits = vlm.model(**plain_inputs(vlm, photo, prompt, answer), use_cache=False).logits[0, -1]
        values = logits.log_softmax(-1)
        if answer:
            values[list(vlm.first_only_ids)] = -torch.inf
            values = values.log_softmax(-1)
        top = values.topk(3)
        assert one.logprob == pytest.approx(float(top.values[0]), abs=1e-4)
        assert [entry.logprob for entry in one.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [entry.token for entry in one.top_logprobs] == [vlm.decode([i]) for i in top.indices.tolist()]
        assert bytes(one.bytes).decode() == one.token
        answer.append(int(top.indices[0]))
    assert 1 <= len(found) <= 5
    *_, last = client.chat.completions.create(**ask, stream=True)
    assert last.choices[0].logprobs.content == found
    plain = client.chat.completions.create(**{**ask, "logprobs": False, "top_logprobs": None})
    assert plain.choices[0].logprobs is None
    for wrong in ({"logprobs": False}, {"top_logprobs": 21}):
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            client.chat.completions.create(**{**ask, **wrong})


def test_our_own_benchmark_scores_our_own_server(server: Running, photo: Image.Image) -> None:
    endpoint = Endpoint(f"{server.url}/v1", server.detector.name)
    assert endpoint.gives_logprobs
    ((scores,),) = endpoint.score([photo], [[Ask("Real or fake?", ("Yes.", "No."))]])
    assert all(score.logprob <= 0 for score in scores)


def test_null_for_an_option_is_its_default(server: Running, http: httpx.Client, photo: Image.Image) -> None:
    asks: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("/v1/query", {"question": "What?", "settings": {"max_tokens": 3}}, ("stream", "model", "reasoning")),
        ("/v1/query", {"question": "What?"}, ("settings", "spatial_refs")),
        ("/v1/caption", {}, ("length", "stream", "model", "settings")),
        ("/v1/verdict", {}, ("images", "model")),
        ("/v1/evidence", {}, ("topic", "model")),
    ]
    for route, body, options in asks:
        plain = {"image_url": data_url(photo), **body}
        nulls: dict[str, Any] = {**plain, **dict.fromkeys(options)}
        nulls["settings"] = nulls.get("settings") and {**nulls["settings"], "temperature": None, "top_p": None}
        answers = [http.post(route, json=sent).json() for sent in (plain, nulls)]
        for answer in answers:
            answer.pop("request_id", None)
        assert answers[0] == answers[1], route
    options = ("stream", "stream_options", "temperature", "top_p", "max_tokens", "n", "stop", "tools", "logprobs")
    body = {"model": server.detector.name, "messages": [{"role": "user", "content": "Hi"}], **dict.fromkeys(options)}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert http.post("/v1/query", json={"question": None}).status_code == 400


def test_base64_as_clients_write_it(http: httpx.Client, photo: Image.Image) -> None:
    for image in (photo, make_photo(1, (200, 200))):  # short, and taken out of the body
        head, text = data_url(image).split(",")
        expected = http.post("/v1/verdict", json={"image_url": f"{head},{text}"}).json()
        lines = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        for written in (lines, text.rstrip("="), f" {text}\n", text.replace("+", "-").replace("/", "_")):
            answer = http.post("/v1/verdict", json={"image_url": f"{head},{written}"})
            assert answer.json() == expected


def test_an_image_in_place_of_a_text_is_refused(http: httpx.Client) -> None:
    url = data_url(make_photo(1, (200, 200)))
    answer = http.post("/v1/query", json={"image_url": url, "question": url})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "question")


def test_user_text_cannot_forge_special_tokens(detector: Detector) -> None:
    vlm = detector.engine.vlm
    tokenizer = vlm.processor.tokenizer
    for token in tokenizer.all_special_tokens:
        plain = vlm.question_ids("a b")
        forged = vlm.question_ids(f"a {token} b")
        template = [i for i in plain if i in tokenizer.all_special_ids]
        assert [i for i in forged if i in tokenizer.all_special_ids] == template, token


def test_the_heat_map_of_a_cnn_is_next_to_the_evidence_map(detector: Detector, photo: Image.Image) -> None:
    pytest.importorskip("captum", reason="needs the extra cnn")
    model = new_model(CnnConfig(arch="fakenet2", image_size=32, heads={"verdict": ["real", "generated"]})).eval()
    cnn = CnnDetector(model, Calibration(), "runs/cnn")
    with serving(detector, cnn=cnn) as running:
        answer = httpx.post(f"{running.url}/v1/evidence", json={"image_url": data_url(photo)}, timeout=60).json()
    assert answer["cnn"]["model"] == "runs/cnn"
    assert answer["cnn"]["p_fake"] == pytest.approx(float(cnn.scores([photo]).p_fake[0]), abs=1e-5)
    shown = Image.open(io.BytesIO(base64.b64decode(answer["cnn"]["picture"].partition(",")[2])))
    assert shown.size == (32, 32)
