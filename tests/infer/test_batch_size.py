"""Batches follow the free memory: estimated for the first, halved after an out-of-memory error, with equal results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories import tiny_vlm
from tests.train.toys import stored, toy_image
from vlm_detect.errors import UserError
from vlm_detect.infer import batch_size, engine
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.batch_size import SPARE_BYTES, BatchSize, images_that_fit, rows_that_fit
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.infer.footprint import Footprint
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.features import Features

ASKS = [Ask("Is it?", ("Yes.", "No."))]
IMAGES = [toy_image(bool(seed % 2), np.random.default_rng(seed), 32) for seed in range(7)]


class Small:
    """A device that holds `most` items; each error is a new one, as a driver's."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, items):
        self.sizes.append(len(items))
        if len(items) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [2 * item for item in items]


def test_a_batch_that_does_not_fit_is_halved_and_said_once(capsys) -> None:
    work, size = Small(3), BatchSize(16)
    assert size.run(range(10), work) == [2 * i for i in range(10)]
    assert work.sizes == [10, 5, 2, 2, 2, 2, 2]
    assert capsys.readouterr().err == "out of memory with 10 images at once: going on with 2\n"
    assert size.run(range(3), work) == [0, 2, 4]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("message", ["MPS backend out of memory (MPS allocated: 9 GB)", "can't allocate memory: 9"])
def test_devices_that_say_it_in_words_are_understood(message) -> None:
    def work(items):
        if len(items) > 1:
            raise RuntimeError(message)
        return list(items)

    assert BatchSize(4).run("abc", work) == ["a", "b", "c"]


def test_what_is_no_lack_of_memory_or_cannot_be_smaller_is_an_error() -> None:
    with pytest.raises(UserError, match="out of memory with one prompt at once: free the device"):
        BatchSize(4, what="prompts").run(range(4), Small(0))
    with pytest.raises(torch.OutOfMemoryError):  # processes that wait for each other
        BatchSize(4, fixed=True).run(range(4), Small(2))

    def wrong(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        BatchSize(4).run(range(4), wrong)


def test_memory_is_given_up_before_a_smaller_batch_is_tried() -> None:
    given_up: list[int] = []
    work = Small(2)
    size = BatchSize(4, give_up=lambda: given_up.append(len(work.sizes)))
    size.run(range(4), work)
    assert given_up == [1]  # after the first try


@pytest.fixture
def vlm():
    return tiny_vlm()


def on_a_device_for(vlm, most: int, monkeypatch) -> list[int]:
    """The model's tower fails for more images than `most`; the sizes of its batches."""
    sizes: list[int] = []
    encode = vlm.encode

    def encode_few(prepared):
        sizes.append(len(prepared["pixel_values"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(prepared)

    monkeypatch.setattr(vlm, "encode", encode_few)
    return sizes


PROMPTS = [["What?", "Why is that?"][: 1 + i % 2] for i in range(7)]
WORK = {
    "score": lambda engine: engine.score(IMAGES, [ASKS] * 7),
    "answers": lambda engine: engine.generate(IMAGES, PROMPTS, 5),
    "rows": lambda engine: engine.generate(IMAGES, PROMPTS, 5, num_beams=1),
    "captions": lambda engine: engine.caption(IMAGES, max_new_tokens=5),
    "boxes": lambda engine: engine.detect(IMAGES, [["a", "b"][: 1 + i % 2] for i in range(7)], 2),
    "points": lambda engine: engine.point(IMAGES, [["a"]] * 7, 2),
    "reasons": lambda engine: engine.reason(IMAGES, [["Why?"]] * 7, 6),
    "features": lambda engine: engine.pooled(IMAGES).round(4).tolist(),
}


@pytest.mark.parametrize("work", WORK)
def test_everything_of_the_engine_goes_on_with_smaller_batches(vlm, work, monkeypatch, capsys) -> None:
    expected = WORK[work](Engine(vlm, cache_bytes=0))
    sizes = on_a_device_for(vlm, 2, monkeypatch)
    got = WORK[work](Engine(vlm, cache_bytes=0))
    if work == "score":
        got, expected = ([[s.logprob for ask in image for s in ask] for image in some] for some in (got, expected))
        assert np.allclose(got, expected, atol=1e-5)
    else:
        assert got == expected
    assert max(sizes) > 2
    assert capsys.readouterr().err.count("out of memory") == 1


def test_an_evidence_map_too(vlm, monkeypatch, capsys) -> None:
    expected = evidence_map(Engine(vlm), IMAGES[0], across=5)
    prefill = engine.prefill

    def prefill_few(vlm, embeds):
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefill(vlm, embeds)

    monkeypatch.setattr(engine, "prefill", prefill_few)
    assert np.allclose(evidence_map(Engine(vlm), IMAGES[0], across=5).values, expected.values, atol=1e-4)
    assert capsys.readouterr().err.count("out of memory") == 1


def test_verdicts_too(vlm, monkeypatch, capsys) -> None:
    """The size changes in the first of two batches."""
    images = [*IMAGES, *(toy_image(False, np.random.default_rng(seed), 32) for seed in range(10, 21))]
    expected = [verdict.log_odds for verdict in Detector(vlm)(images)]
    on_a_device_for(vlm, 3, monkeypatch)
    assert [verdict.log_odds for verdict in Detector(vlm)(images)] == pytest.approx(expected, abs=1e-4)
    assert capsys.readouterr().err.count("out of memory") == 1


def test_the_feature_cache_too(vlm, monkeypatch, tmp_path, capsys) -> None:
    vlm.model.requires_grad_(False)
    images = [stored(image) for image in IMAGES]
    keys = [image.key for image in images]
    expected = Features.build(vlm, images, tmp_path / "one").read(keys)["image_embeds"]
    on_a_device_for(vlm, 3, monkeypatch)
    got = Features.build(vlm, images, tmp_path / "other").read(keys)["image_embeds"]
    assert torch.allclose(got, expected, atol=1e-5)
    assert capsys.readouterr().err.count("out of memory") == 1


@pytest.mark.parametrize("name", ["moondream", "tinyllava"])
def test_the_first_batch_is_what_fits_the_free_memory(name, monkeypatch) -> None:
    vlm = tiny_vlm() if name == "moondream" else load_vlm("tinyllava-nano", device="cpu")
    footprint = Footprint.of(vlm)
    one = footprint.image_bytes

    def with_free(free: float | None) -> Engine:
        monkeypatch.setattr(batch_size, "free_device_bytes", lambda device: free and int(free))
        return Engine(vlm, cache_bytes=0)

    for free, expected in [(None, 16), (1e6, 1), (SPARE_BYTES + 2.5 * one, 2), (SPARE_BYTES + 1e3 * one, 16)]:
        assert with_free(free).batch_images == expected, free
    assert Engine(vlm, batch_images=1000, fixed_batches=True).batch_images == 1000
    with_free(8e9)
    keeps = Engine(vlm, batch_images=10**9)  # a quarter of the free memory for prefixes that are kept
    assert keeps.batch_images == int((8e9 - SPARE_BYTES - 2e9) / one)
    assert keeps.memory.max_bytes == 2e9
    with_free(SPARE_BYTES + 3.5 * one)  # or half of what one image leaves
    assert Engine(vlm).batch_images == 2
    assert batch_size.bytes_to_hold(vlm) == pytest.approx(1.25 * one, abs=2)
    with_free(8e9)
    assert images_that_fit(vlm) > images_that_fit(vlm, reserved=2e9)
    assert rows_that_fit(vlm) > images_that_fit(vlm)
    layers, width = vlm.model.config.get_text_config().num_hidden_layers, vlm.model.config.get_text_config().hidden_size
    assert footprint.kv_token_bytes == 2 * layers * width * 4
