"""Twins from a model behind an endpoint: what is sent, which answers are accepted, and what the dataset states."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.generate.fake_image_endpoint import FakeImageEndpoint, answer_of, fake_image_endpoint, png_of
from tests.generate.test_edits import textured
from vlm_detect import extras
from vlm_detect.errors import UserError
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.edits import random_place
from vlm_detect.generate.endpoint_generator import EndpointGenerator
from vlm_detect.generate.make_pairs import main
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.receipts import render_row
from vlm_detect.infer.endpoint_client import Failed, OutOfBounds, Refused, Unavailable
from vlm_detect.models.registry import ResolvedModel

SIZE = (64, 48)
KEY = "sk-secret"
BARN = "a barn"


@pytest.fixture
def server() -> Iterator[FakeImageEndpoint]:
    with fake_image_endpoint() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


def generator(server: FakeImageEndpoint, **settings: Any) -> EndpointGenerator:
    config = RenderConfig(generator="painter", generator_endpoint=server.url, api_key_env="MY_KEY", **settings)
    return EndpointGenerator(ResolvedModel("painter", server.url), config)


def render(one: EndpointGenerator, seed: int = 2**40 + 7, prompt: str = BARN) -> Image.Image:
    return one.render([{"prompt": prompt}], [seed], SIZE)[0]


def encoded(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 60000x60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_a_request_has_the_settings_and_the_key(server: FakeImageEndpoint) -> None:
    one = generator(server, steps=8, guidance=3.0)
    assert render(one).size == SIZE
    sent = {"prompt": BARN, "model": "painter", "n": 1, "size": "64x48", "response_format": "b64_json"}
    sent |= {"output_format": "png", "seed": (2**40 + 7) % 2**31, "num_inference_steps": 8, "guidance_scale": 3.0}
    assert server.requests == [("/v1/images/generations", sent)]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (one.steps, one.guidance) == (8, 3.0)


def test_unknown_fields_are_omitted_from_then_on_reported_once_and_not_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with fake_image_endpoint(refused=("response_format", "seed", "num_inference_steps")) as server:
        one = generator(server, steps=8)
        render(one)
        render(one)
    assert [len(request) for _, request in server.requests] == [8, 7, 6, 5, 5]
    assert (one.steps, one.guidance) == (None, None)
    assert capsys.readouterr().err.splitlines() == [
        f"{server.url}: the field {name} is unknown there and is omitted from now on"
        for name in ("response_format", "seed", "num_inference_steps")
    ]


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "no", "param": "seed", "code": "unknown_parameter"}},
        {"error": {"message": "Unrecognized request argument supplied: seed"}},
        {"error": {"message": "generate() got an unexpected keyword argument 'seed'"}},
        {"error": {"message": "Unsupported parameter: 'seed' is not supported with this model."}},
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        {"error": {"message": "1 validation error: {'type': 'extra_forbidden', 'loc': ('body', 'seed')}"}},
    ],
)
def test_servers_call_a_field_unknown_in_several_ways(server: FakeImageEndpoint, error: dict[str, Any]) -> None:
    server.next(400, json.dumps(error).encode())
    render(generator(server))
    assert ["seed" in request for _, request in server.requests] == [True, False]


@pytest.mark.parametrize(
    "error",
    [
        {"message": "the prompt violates the policy on seeds: 'seed'", "code": "content_policy"},
        {"message": "Invalid value for 'seed': must be below 100", "param": "seed", "code": "invalid_value"},
        {"message": f"refused: {BARN} with an unknown parameter: 'seed'"},
        {"message": "Unknown parameter: 'seedling'."},
        {"message": "Unknown parameter: 'prompt'.", "param": "prompt", "code": "unknown_parameter"},
    ],
)
def test_a_field_that_is_only_mentioned_stays(server: FakeImageEndpoint, error: dict[str, Any]) -> None:
    server.next(400, json.dumps({"error": error}).encode())
    one = generator(server)
    with pytest.raises(Refused, match="refused: "):
        render(one, prompt=f"{BARN} with an unknown parameter: 'seed'")
    render(one)
    assert all("seed" in request for _, request in server.requests)


def test_an_edit_by_instruction_sends_the_photo(server: FakeImageEndpoint) -> None:
    photo = Image.new("RGB", SIZE, "teal")
    assert generator(server).instruct(photo, 3, {"prompt": "Make it evening"}).size == SIZE
    ((route, form),) = server.requests
    assert route == "/v1/images/edits"
    assert (form["prompt"], form["seed"], form["size"]) == ("Make it evening", "3", "64x48")
    sent = Image.open(io.BytesIO(form["image"]))
    assert (sent.format, sent.getpixel((0, 0))) == ("PNG", (0, 128, 128))
    assert form.keys() & {"mask", "mask_image"} == set()


def test_inpainting_sends_a_mask_that_servers_of_both_conventions_understand() -> None:
    place = random_place(SIZE, np.random.default_rng(0))
    with fake_image_endpoint(refused=("mask_image",)) as server:
        generator(server).inpaint(Image.new("RGB", SIZE, "teal"), place, 3, {"prompt": BARN})
    (_, first), (_, second) = server.requests
    assert first["mask_image"].startswith("data:image/png;base64,")
    assert "mask_image" not in second
    mask = np.asarray(Image.open(io.BytesIO(second["mask"])))
    assert mask.shape == (48, 64, 4)
    x0, y0, x1, y1 = place.box
    repainted = np.zeros((48, 64), bool)
    repainted[y0:y1, x0:x1] = place.mask > 0
    assert 0 < repainted.sum() < repainted.size
    assert (mask[..., 3] == np.where(repainted, 0, 255)).all()  # transparent is repainted
    assert (mask[..., 0] == np.where(repainted, 255, 0)).all()  # white is repainted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>Service page</html>", "no images in the answer, which begins '<html>"),
        (b"[]", "no images in the answer"),
        (b"[" * 100_000, "no images in the answer"),
        (b'{"data": []}', "no images in the answer"),
        (b'{"data": [{"url": "http://169.254.1.1/x.png"}]}', r"a URL, which is never fetched; .*b64_json"),
        (b'{"data": [{"b64_json": null}]}', "no image in base64"),
        (b'{"data": [{"b64_json": "not base64!"}]}', "b64_json is not base64"),
        (answer_of(b"not an image"), "not_an_image"),
        (answer_of(png_of((32, 32))), "32x32 pixels instead of 64x48; give --render_size"),
        (answer_of(bomb()), "too_large: "),
    ],
)
def test_a_bad_answer_is_the_failure_of_one_image_and_three_in_a_row_end_the_run(
    server: FakeImageEndpoint, body: bytes, reason: str
) -> None:
    one = generator(server)
    for last in (False, True):
        server.next(200, body, times=3 if last else 2)
        for _ in range(2):
            with pytest.raises(UserError, match=reason) as raised:
                render(one)
            assert not isinstance(raised.value, Unavailable)
        if last:
            with pytest.raises(Unavailable, match=rf"{reason}.*3 images in a row"):
                render(one)
        else:
            assert render(one).size == SIZE


def test_the_answers_body_is_bounded(server: FakeImageEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_detect.infer.bounded_client._MAX_BYTES", 2**20)
    one = generator(server)
    for status in (200, 400):
        server.next(status, b" " * (2**20 + 1))
        with pytest.raises(OutOfBounds, match="over 1 MB, the limit"):
            render(one)
    server.next(200, gzip.compress(answer_of(png_of(SIZE))), content_encoding="gzip")
    with pytest.raises(Unavailable, match=r"compressed .*3 images in a row"):
        render(one)
    assert len(server.requests) == 3  # none of them is requested again
    assert {headers["accept-encoding"] for headers in server.headers} == {"identity"}


def test_the_time_of_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_detect.generate.endpoint_generator._TIMEOUT_S", 2.0)
    with fake_image_endpoint(pause_s=0.2) as server, pytest.raises(OutOfBounds, match="over 2 s to arrive"):
        render(generator(server))
    assert len(server.requests) == 1


def test_a_lossy_answer_is_reported_once(server: FakeImageEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    server.next(200, answer_of(encoded(Image.open(io.BytesIO(png_of(SIZE))), "JPEG")), times=2)
    one = generator(server)
    assert render(one).size == render(one).size == SIZE
    assert capsys.readouterr().err.count("answers in JPEG although PNG was requested") == 1


def test_a_rejected_prompt_is_the_failure_of_one_image(server: FakeImageEndpoint) -> None:
    one = generator(server)
    for status, body in (
        (400, b'{"error": {"message": "violates the policy"}}'),
        (400, b'{"error": "violates the policy"}'),
        (413, b"violates the policy"),
        (422, b'{"detail": "violates the policy"}'),
    ):
        server.next(status, body)
        with pytest.raises(Refused, match=r"refused: .*violates the policy"):
            render(one)
    assert render(one).size == SIZE


def test_rate_limits_and_server_errors_are_retried(server: FakeImageEndpoint) -> None:
    for status in (429, 503, 500):
        server.next(status, b"{}")
    assert render(generator(server)).size == SIZE
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"{}", "refuses the key"),
        (404, b"{}", "has no model 'painter'"),
        (405, b"{}", "refuses every request"),
        (400, b'{"error": {"message": "no", "code": "billing_hard_limit_reached"}}', "refuses every request"),
        (503, b"{}", "does not answer"),
    ],
)
def test_what_every_request_would_get_ends_the_run(
    server: FakeImageEndpoint, status: int, body: bytes, reason: str
) -> None:
    server.next(status, body, times=7)
    with pytest.raises(Unavailable, match=reason):
        render(generator(server))


def test_an_error_of_the_server_is_the_failure_of_one_image(server: FakeImageEndpoint) -> None:
    server.next(500, b'{"detail": "Image generation failed"}', times=7)
    one = generator(server)
    with pytest.raises(Failed, match="Image generation failed"):
        render(one)
    assert render(one).size == SIZE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: FakeImageEndpoint, status: int) -> None:
    with fake_image_endpoint() as other:
        server.next(status, b"", location=f"{other.url}/images/edits")
        with pytest.raises(Unavailable, match=rf"redirects to '{other.url}/images/edits', which is not followed"):
            generator(server).instruct(Image.new("RGB", SIZE), 0, {"prompt": BARN})
    assert not other.requests
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, json.dumps({"error": {"message": f"bad header 'Bearer {KEY}'\x1b[2J"}}).encode()),
        (401, json.dumps({"error": {"message": f"Incorrect key {KEY}"}}).encode()),
        (200, f"your key is {KEY}\x1b[2J".encode()),
    ],
)
def test_the_key_is_in_no_message(server: FakeImageEndpoint, status: int, body: bytes) -> None:
    server.next(status, body)
    with pytest.raises(UserError, match=r"\*\*\*") as raised:
        render(generator(server))
    assert KEY not in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"generator": "auto"}, "give its model's name with --generator"),
        ({"generator_endpoint": "host:80"}, "host:80: not a URL"),
        ({"generator_endpoint": "http://[::1/v1"}, "not a URL"),
        ({"generator_endpoint": "https://me:secret@host/v1"}, "may be secret"),
        ({"generator_endpoint": "https://host/v1?key=secret"}, "may be secret"),
        ({"quantization": "nf4"}, "--quantization nf4: the server of --generator_endpoint decides"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: the server of --generator_endpoint decides"),
        ({"render_batch": 4}, "one image per request; give --workers"),
    ],
)
def test_settings_that_do_not_fit_an_endpoint_are_refused(settings: dict[str, Any], reason: str) -> None:
    given = {"generator": "painter", "generator_endpoint": "http://host/v1"} | settings
    with pytest.raises(UserError, match=reason) as raised:
        RenderConfig(**given)
    assert "secret@" not in str(raised.value)
    assert "key=" not in str(raised.value)


def test_an_endpoint_does_not_make_every_kind_of_twin() -> None:
    model = ResolvedModel("painter", "http://host/v1")
    EndpointGenerator.check_kinds(model, TwinKinds("caption,edit,instruct").kinds)
    EndpointGenerator.check_inpainting(model)
    with pytest.raises(UserError, match="--twins vae: painter has no autoencoder"):
        EndpointGenerator.check_kinds(model, ["vae"])


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        textured(i, SIZE).save(folder / f"{i}.png")
    lines = ["file_name,caption", *(f"{i}.png,a thing of kind {i}" for i in range(count))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def command(tmp_path: Path, server: FakeImageEndpoint, *more: str) -> list[str]:
    return [
        "--images", str(tmp_path / "photos"), "--generator", "painter", "--generator_endpoint", server.url,
        "--api_key_env", "MY_KEY", "--captioner", "column", "--render_size", "32", "--validation", "0", "--test", "0",
        "--out", str(tmp_path / "pairs"), *more,
    ]  # fmt: skip


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    return [row for path in (dataset / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_dataset_from_an_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "diffusers" else installed(name))
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it fails
    photos(tmp_path / "photos", 4)
    with fake_image_endpoint() as server:
        made = command(tmp_path, server, "--twins", "caption,instruct")
        main([*made, "--dry_run"])
        planned = capsys.readouterr().out
        assert "endpoint: 8 requests, 0.00819 megapixels; " in planned
        assert f"captions, instructions and photos are sent to {server.url} on this machine" in planned
        assert not server.requests
        server.next(200, b"nothing")
        main(made)
    assert "are sent to" in capsys.readouterr().out
    assert [route.rpartition("/")[2] for route, _ in server.requests].count("edits") == 4
    rows = rows_of(tmp_path / "pairs")
    assert sorted(row["kind"] for row in rows) == ["caption"] * 3 + ["instruct"] * 4
    assert {row["generator"] for row in rows} == {"painter"}
    assert {row["receipt"]["scheduler"] for row in rows} == {f"chosen by {server.url}; not reproducible by seed"}
    assert {row["receipt"]["steps"] for row in rows} == {None}
    (reject,) = pq.read_table(tmp_path / "pairs" / "rejects.parquet").to_pylist()
    assert reject["reason"] == "renderer_failed"
    assert "no images in the answer" in reject["detail"]
    card = (tmp_path / "pairs" / "README.md").read_text()
    assert f"The generated images come from {server.url}" in card
    assert "C2PA" in card
    assert "watermarks" in card
    run = json.loads((tmp_path / "pairs" / "run.json").read_text())
    assert run["config"]["render"]["settings"]["generator_endpoint"] == server.url
    assert KEY.encode() not in bytes_of(tmp_path)
    with pytest.raises(UserError, match="they cannot be reproduced"):
        render_row(tmp_path / "pairs", rows[0]["pair_id"], tmp_path / "twin.png")


def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path) -> None:
    photos(tmp_path / "photos", 4)
    with fake_image_endpoint() as server:
        made = command(tmp_path, server, "--twins", "caption", "--shard_size", "2")
        for _ in range(3):
            server.next(200, answer_of(png_of((32, 32), len(server.answers))))
        server.next(401, b"{}")
        with pytest.raises(Unavailable, match="refuses the key"):
            main(made)
        assert len(server.requests) == 4
        server.requests.clear()
        main(made)
        assert len(server.requests) == 2  # the first shard is complete
    assert len(rows_of(tmp_path / "pairs")) == 4


def test_photos_are_sent_for_edits_only_where_inpainting_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "photos", 2)
    with fake_image_endpoint() as server:
        main(command(tmp_path, server, "--twins", "caption,edit", "--dry_run"))
        assert "endpoint: 2 requests, 0.00205 megapixels; captions are sent to" in capsys.readouterr().out
        made = command(tmp_path, server, "--twins", "edit", "--edit_operations", "inpaint", "--edits_on", "photos")
        made += ["--encode", "png"]
        main([*made, "--dry_run"])
        planned = capsys.readouterr().out
        assert "and for about 1 in 1 of 2 edits up to 10 requests each; captions and photos are sent to" in planned
        server.next(400, b'{"error": {"message": "violates the policy"}}')
        main(made)
    (row,) = rows_of(tmp_path / "pairs")
    assert row["edit"]["operation"] == "inpaint"
    before, after = (
        np.asarray(Image.open(io.BytesIO(row[name]["bytes"])).convert("RGB")) for name in ("image", "twin")
    )
    x0, y0, x1, y1 = row["edit"]["box"]
    outside = np.ones(before.shape[:2], bool)
    outside[y0:y1, x0:x1] = False
    assert (before == after)[outside].all()
    assert (before != after)[~outside].any()
    (reject,) = pq.read_table(tmp_path / "pairs" / "rejects.parquet").to_pylist()
    assert reject["reason"] == "renderer_failed"
    assert "edit of the photo: Refused: refused: " in reject["detail"]
