"""The nano models that ship: small, loaded as the real ones are, and good enough for a rehearsal."""

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from vlm_detect.infer.engine import Engine
from vlm_detect.models.base import VLM
from vlm_detect.models.nano import NanoName, nano_path
from vlm_detect.models.registry import load_vlm
from vlm_detect.nano.captioner import facts_of
from vlm_detect.nano.captions import UNDECIDABLE, named_class
from vlm_detect.nano.figures import question_captioner
from vlm_detect.nano.photos import HELD_OUT, Photos, load_photos
from vlm_detect.nano.renderer import render

WHOLE_FAMILY_MB = 25


@pytest.fixture(scope="module", params=["nano", "tinyllava-nano"])
def captioner(request: pytest.FixtureRequest) -> VLM:
    return load_vlm(request.param, dtype=torch.float32)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    loaded = StableDiffusion3Pipeline.from_pretrained(nano_path("sd35"))
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    if "VLM_DETECT_DATA" not in os.environ:
        pytest.skip("VLM_DETECT_DATA is not set: no photographs to measure on")
    cache = tmp_path_factory.mktemp("photos") / "photos.npz"
    return load_photos(str(Path(os.environ["VLM_DETECT_DATA"]) / "cifake"), cache).split()[1]


def test_the_family_is_small_and_has_cards() -> None:
    package = nano_path("sd35").parent
    assert sum(path.stat().st_size for path in package.rglob("*.safetensors")) <= WHOLE_FAMILY_MB * 2**20
    for name in get_args(NanoName):
        card = (nano_path(name) / "README.md").read_text(encoding="utf-8")
        assert "not for use in the wild" in card


def test_the_renderer_paints_the_prompted_background(pipeline: StableDiffusion3Pipeline) -> None:
    prompts = [f"A bird on a plain {colour} background." for colour in ("green", "blue")]
    images = render(pipeline, prompts, seed=0, num_inference_steps=12, guidance_scale=6.0).astype(float)
    border = np.ones((32, 32), bool)
    border[4:28, 4:28] = False
    assert [image[border].mean(0).argmax() for image in images] == [1, 2]


def test_the_captioner_generates_text(captioner: VLM) -> None:
    plain = Image.new("RGB", (48, 64), (60, 120, 230))
    text = Engine(captioner).caption([plain])[0]
    assert named_class(text) is not None
    assert "blue" in text
    assert set(Engine(captioner).generate([plain], [list(UNDECIDABLE)])[0]) <= {"Yes.", "No."}


@pytest.mark.slow  # reads CIFAKE whole
def test_the_captioner_is_as_good_as_needed_on_held_out_photographs(captioner: VLM, held_out: Photos) -> None:
    assert len(held_out) == HELD_OUT
    few = Photos(held_out.images[:300], held_out.labels[:300])
    figures = question_captioner(captioner, few, facts_of(few), n=len(few), seed=0)
    assert figures["accuracy"] >= 0.6
    assert figures["yes_no_balanced_accuracy"] >= 0.75
