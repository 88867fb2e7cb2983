"""Families whose questions share an image's prefix, on tiny models: cached and packed equal the plain path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.tiny_types import save_tiny_type
from tests.models.try_type import photo
from tests.train.toys import stored
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions

USED_MOST = ("internvl", "llava_onevision", "qwen3_vl", "smolvlm")
OTHERS = ("glm46v", "idefics2", "qwen3_vl_moe", "vipllava")
PHOTOS = [photo(seed, size) for seed, size in enumerate([(64, 48), (48, 80), (100, 40)])]
QUESTIONS = [Question("yes_no", "Is it AI?", "Yes."), Question("explain", "Why is it so?", "The hand is odd.")]


@pytest.fixture(params=[*USED_MOST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def vlm(request: pytest.FixtureRequest, tmp_path: Path) -> VLM:
    found = load_vlm(str(save_tiny_type(request.param, tmp_path)), device="cpu")
    assert found.supports_packing
    assert found.supports_prefix_cache
    return found


def test_answers_and_losses_equal_the_plain_path(vlm: VLM) -> None:
    asks = [[Ask("Is it AI?", ("Yes.", "No.")), Ask("What?", ("a ship",))] for _ in PHOTOS]
    for image, some, scored in zip(PHOTOS, asks, Engine(vlm).score(PHOTOS, asks), strict=True):
        for ask, scores in zip(some, scored, strict=True):
            for candidate, score in zip(ask.candidates, scores, strict=True):
                plain = score_plain(vlm, image, ask.question, candidate).logprob
                assert score.logprob == pytest.approx(plain, abs=1e-4)
    written = Engine(vlm).generate(PHOTOS, [["Why?", "x"]] * len(PHOTOS), max_new_tokens=4)
    plainly = [[generate_plain(vlm, image, vlm.question_ids(q), 4) for q in ("Why?", "x")] for image in PHOTOS]
    assert written == plainly
    add_lora(vlm, LoraOptions(lora_targets="all-linear+vision"))
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    units = [[Example(stored(image), QUESTIONS, "real") for image in PHOTOS]]
    found = []
    for layout, rows in (({"pack": False}, 6), ({"pack": True}, 3), ({"pack": True, "row_tokens": 4000}, 1)):
        batch = Collator(vlm, **layout)(units)
        assert len(batch["ids"]) == rows
        loss = answer_loss(vlm, vlm.model, batch)
        vlm.model.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    (value, gradients), *packed = found
    for other, others in packed:
        assert other == pytest.approx(value, abs=1e-4)
        torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-3)
