"""Images prepared in threads ahead: the same tensors, each prepared once, and nothing kept longer than its image."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from tests.benchmark.fakes import verdict_rows, write_benchmark
from tests.factories import tiny_vlm
from tests.infer.test_witnesses import save_cnn
from tests.models.test_expert_tokens import fused
from tests.models.tiny_chat import save_tiny
from tests.train.toys import toy_pairs
from vlm_detect.apps import service
from vlm_detect.apps.service import Service
from vlm_detect.apps.tasks import Judge
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import score
from vlm_detect.infer import prepared
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.picture import Picture
from vlm_detect.infer.prepared import PreparedAhead, image_key
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.fit_head import read
from vlm_detect.train.options import QuestionOptions
from vlm_detect.train.validation import ValidationSet, validation_odds


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where images are prepared ahead."""
    monkeypatch.setattr(prepared, "threads_for", lambda device: 2)


@pytest.fixture(scope="module", params=["moondream", "llava", "qwen2_5_vl", "idefics3"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    if request.param == "moondream":
        return tiny_vlm()
    return load_vlm(str(save_tiny(request.param, tmp_path_factory.mktemp(request.param))), device="cpu")


def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (64, 48), (20, 64), (33, 30)]
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def recorded(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread in which each image is prepared from now on."""
    threads: list[str] = []
    plain = vlm.prepare

    def prepare(images: Any) -> Any:
        threads.extend([threading.current_thread().name.split("_")[0]] * len(images))
        return plain(images)

    monkeypatch.setattr(vlm, "prepare", prepare)
    return threads


def tensors(found: Any) -> list[torch.Tensor]:
    """Of an embedding, or of a list of dicts of tensors and numbers."""
    if isinstance(found, torch.Tensor):
        return [found]
    return [torch.as_tensor(one) for image in found for one in image.values()]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("begun", [[0, 1, 2, 3], [1, 3]])
def test_a_batch_is_bit_for_bit_the_same(vlm: VLM, begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos()
    with torch.inference_mode():
        expected = tensors(vlm.encode(vlm.prepare(images)))
        threads = recorded(vlm, monkeypatch)
        ready = PreparedAhead(vlm)
        ready.begin([images[i] for i in begun])
        got = tensors(vlm.encode(ready.batch(images)))
    assert len(got) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert threads.count("prepare") == len(begun)
    assert len(threads) == len(images)


@pytest.mark.usefixtures("two_threads")
def test_so_are_the_pixels_of_an_expert(tmp_path: Path) -> None:
    vlm, images = fused(tiny_vlm(), save_cnn(tmp_path / "cnn")), photos()
    ready = PreparedAhead(vlm)
    ready.begin(images)
    with torch.inference_mode():
        assert torch.equal(vlm.encode(ready.batch(images)), vlm.encode(vlm.prepare(images)))


@pytest.mark.usefixtures("two_threads")
def test_scores_are_the_same_and_each_image_is_prepared_and_hashed_once(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ask("Is this image AI-generated?", ("Yes.", "No."))
    images = photos()
    plain = Engine(vlm).score(images, [[ask]] * 4)
    threads, hashed = recorded(vlm, monkeypatch), []
    monkeypatch.setattr(prepared, "image_key", lambda image: hashed.append(image) or image_key(image))
    engine = Engine(vlm)
    engine.prepare_ahead(images)
    assert engine.score(images, [[ask]] * 4) == plain
    assert threads == ["prepare"] * 4
    engine.score(images, [[ask]] * 4)
    assert len(hashed) == len(threads) == 4
    again = photos()
    engine.prepare_ahead(again)
    engine.score(again, [[ask]] * 4)
    assert len(threads) == 4, "what the memory holds was prepared again"


@pytest.mark.usefixtures("two_threads")
def test_what_is_prepared_goes_with_its_image() -> None:
    vlm = tiny_vlm()
    ready = PreparedAhead(vlm)
    images = photos()
    ready.begin(images)
    ready.batch(images[:1])
    assert len(ready._begun) == 4
    assert ready._ready(images[0]).prepared is None
    del images
    ended = time.monotonic() + 20
    while ready._begun and time.monotonic() < ended:  # a thread may hold the last one a moment longer
        gc.collect()
        time.sleep(0.01)
    assert not ready._begun


@pytest.mark.usefixtures("two_threads")
def test_an_error_is_raised_at_its_images_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm()
    images = photos()
    plain = vlm.prepare

    def prepare(some: Any) -> Any:
        if any(image is images[1] for image in some):
            raise ValueError("no crops")
        return plain(some)

    monkeypatch.setattr(vlm, "prepare", prepare)
    ready = PreparedAhead(vlm)
    ready.begin(images)
    assert len(ready.batch([images[0], images[2]])["tilings"]) == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="no crops"):
            ready.batch(images[:2])
    assert len(ready._begun) == 3


def test_nothing_is_begun_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm()
    threads = recorded(vlm, monkeypatch)
    engine, images = Engine(vlm), photos()
    engine.prepare_ahead(images)
    engine.prefixes(images)
    assert threads == ["MainThread"] * 4


# Programs that read many images


def benchmark(vlm: VLM, folder: Path) -> int:
    found = load_benchmark(write_benchmark(folder, verdict_rows(folder, 10)))
    engine = Engine(vlm)
    results = score(found, engine, ask=Ask, batch_size=2, generate=False, prepare_ahead=engine.prepare_ahead)
    return len({result.id for some in results for result in some})


def validation(vlm: VLM, folder: Path) -> int:
    args = TrainingArguments(str(folder), per_device_eval_batch_size=2, use_cpu=True, report_to="none")
    return len(validation_odds(vlm, ValidationSet.from_rows(toy_pairs(5)), args))


def feature_cache(vlm: VLM, folder: Path) -> int:
    vlm.model.requires_grad_(False)
    return len(Features.build(vlm, Units(toy_pairs(5), QuestionOptions()).images, folder).places)


def head(vlm: VLM, folder: Path) -> int:
    return len(read(Engine(vlm), ValidationSet.from_rows(toy_pairs(5)), None, "read").features)


def server(vlm: VLM, folder: Path) -> int:
    detector = Detector(vlm)
    pictures: list[Picture | None] = [Picture(image) for image in photos()]
    idle: Any = SimpleNamespace(worker=SimpleNamespace(submit=lambda jobs: None))

    async def start() -> None:
        Service.start_each(idle, [Judge()] * len(pictures), detector, pictures)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(service, "asked", lambda: SimpleNamespace(deadline=float("inf")))
        asyncio.run(start())
    return len(detector.judge([picture for picture in pictures if picture is not None]))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("work", [benchmark, validation, feature_cache, head, server])
def test_images_are_prepared_in_threads(
    work: Callable[[VLM, Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = tiny_vlm()
    threads = recorded(vlm, monkeypatch)
    n_images = work(vlm, tmp_path)
    assert n_images >= 4
    looked = ["MainThread"] if work is feature_cache else []  # at an empty image, for what the tower reads
    assert threads == looked + ["prepare"] * n_images
