"""Whether questions share an image's prefix: what the probe finds on a model is what a full comparison finds."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.models.tiny_types import save_tiny_type
from tests.models.try_type import RECORD, photo
from tests.train.toys import stored, toy_pairs
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.validation import ValidationSet

# transformers' PaliGemmaProcessor makes arrays of tensors in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

USED_MOST = ("internvl", "llava_onevision", "qwen3_vl", "smolvlm")
OTHERS = ("paligemma", "qwen3_5")  # an image that sees the question; layers with a state in place of attention
SHARE = (*USED_MOST, "gemma3")
ROWS = {row["model_type"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))}
SLOW = [name for name, row in ROWS.items() if row["scores"] and name not in (*USED_MOST, *OTHERS)]

PHOTOS = [photo(seed, size) for seed, size in enumerate([(64, 48), (48, 80), (100, 40)])]
QUESTIONS = [Question("yes_no", "Is it AI?", "Yes."), Question("explain", "Why is it so?", "The hand is odd.")]


@pytest.mark.parametrize("name", [*USED_MOST, *OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_probe_finds_what_a_full_comparison_finds(name: str, tmp_path: Path) -> None:
    vlm: Any = load_vlm(str(save_tiny_type(name, tmp_path)), device="cpu")
    found = vlm.supports_packing, vlm.supports_prefix_cache
    assert found == (ROWS[name]["packs"], ROWS[name]["caches"])
    if name in (*USED_MOST, *OTHERS):
        assert found == (name in SHARE, name in SHARE)
    assert holds(lambda: compare_cached(declared(vlm, supports_prefix_cache=True))) == found[1]
    packed = [declared(vlm, supports_packing=True, two_way_images=two_way) for two_way in (False, True)]
    add_lora(vlm, LoraOptions(lora_targets="all-linear+vision"))
    torch.manual_seed(0)
    for key, parameter in vlm.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    for other in packed:
        other.model = vlm.model
    if found[0]:
        compare_packed(packed[vlm.two_way_images])
    else:
        assert not any(holds(lambda other=other: compare_packed(other)) for other in packed)


def declared(vlm: VLM, **attributes: bool) -> VLM:
    """The model in a family that declares what it can do, so that nothing of it is measured."""
    made = copy.copy(vlm)
    made.__class__ = type("Declared", (type(vlm),), attributes)
    return made


def holds(comparison: Callable[[], None]) -> bool:
    try:
        comparison()
    except Exception:  # it differs, or the model cannot be asked so at all
        return False
    return True


def compare_cached(vlm: VLM) -> None:
    """Scores and answers behind cached prefixes, against a forward for each."""
    asks = [[Ask("Is it AI?", ("Yes.", "No.")), Ask("What?", ("a ship",))] for _ in PHOTOS]
    for image, some, scored in zip(PHOTOS, asks, Engine(vlm).score(PHOTOS, asks), strict=True):
        for ask, scores in zip(some, scored, strict=True):
            for candidate, score in zip(ask.candidates, scores, strict=True):
                plain = score_plain(vlm, image, ask.question, candidate).logprob
                assert score.logprob == pytest.approx(plain, abs=1e-4)
    written = Engine(vlm).generate(PHOTOS, [["Why?", "x"]] * len(PHOTOS), max_new_tokens=4)
    plainly = [[generate_plain(vlm, image, vlm.question_ids(q), 4) for q in ("Why?", "x")] for image in PHOTOS]
    assert written == plainly


def compare_packed(vlm: VLM) -> None:
    """Losses and gradients of packed rows, against one question a row."""
    units = [[Example(stored(image), QUESTIONS, "real") for image in PHOTOS]]
    found = []
    for layout, rows in (({"pack": False}, 6), ({"pack": True}, 3), ({"pack": True, "row_tokens": 9000}, 1)):
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


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "qwen3_vl"])
def test_in_bfloat16_it_finds_the_same(name: str, tmp_path: Path) -> None:
    vlm: Any = load_vlm(str(save_tiny_type(name, tmp_path)), device="cpu", dtype=torch.bfloat16)
    assert (vlm.supports_packing, vlm.supports_prefix_cache) == (name in SHARE, name in SHARE)
    assert vlm.two_way_images == (name == "gemma3")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_model_in_training_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dropout is off while it is measured, and nothing is sampled."""
    vlm = load_vlm(str(save_tiny_type("internvl", tmp_path)), device="cpu")
    add_lora(vlm, LoraOptions(lora_dropout=0.5))
    for key, parameter in vlm.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    vlm.model.gradient_checkpointing_enable()
    vlm.model.train()
    vlm.model.get_submodule("base_model.model.model.vision_tower").eval()
    modes = [module.training for module in vlm.model.modules()]
    state = torch.get_rng_state()
    capsys.readouterr()
    assert vlm.supports_packing
    assert vlm.supports_prefix_cache
    assert [module.training for module in vlm.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in vlm.model.parameters())
    assert capsys.readouterr().err == ""


def test_a_training_measures_before_autocast_rounds(tmp_path: Path) -> None:
    """accelerate wraps the forward, so that weights in float32 compute in bfloat16 in validation, too."""
    vlm = load_vlm(str(save_tiny_type("internvl", tmp_path)), device="cpu", dtype=torch.float32)
    add_lora(vlm, LoraOptions())
    flags = {"autocast": "bf16", "use_cpu": True, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    args = TrainArguments(output_dir=str(tmp_path / "run"), report_to="none", load_best_model_at_end=False, **flags)
    pairs = toy_pairs(2)
    DetectorTrainer(vlm, args, Units(pairs, QuestionOptions()), ValidationSet.from_rows(pairs)).train()
    assert vlm.supports_prefix_cache


def test_what_is_not_done_is_said_once_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm = load_vlm(str(save_tiny_type("paligemma", tmp_path)), device="cpu")
    assert "image prefix" not in capsys.readouterr().err, "nothing is measured before it is asked for"
    for _ in range(2):
        assert not Collator(vlm, pack=True).pack
        Engine(vlm).score([photo()], [[Ask("Is it AI?", ("Yes.",))]])
    packed, cached = capsys.readouterr().err.splitlines()
    assert packed.startswith(f"{tmp_path}: one question a row, not packed: its image prefix changes with what follows")
    assert cached.startswith(f"{tmp_path}: each question reads its image again: its image prefix changes with what")


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_weights_without_values_are_not_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations of memory have such models."""
    vlm = load_vlm(str(save_tiny_type("internvl", tmp_path)), device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True) if kind == "fake" else torch.device("meta"):
        vlm.model = type(vlm.model)(vlm.model.config)
        monkeypatch.setattr(vlm.model, "forward", lambda *_, **__: pytest.fail("it was run"))
        assert not vlm.supports_packing
        assert not vlm.supports_prefix_cache


def test_attention_in_chunks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is longer than the rows on which a model is measured."""
    vlm = load_vlm(str(save_tiny_type("internvl", tmp_path)), device="cpu")
    monkeypatch.setattr(vlm.model.config.get_text_config(), "layer_types", ["chunked_attention", "full_attention"])
    assert not vlm.supports_packing
    assert not vlm.supports_prefix_cache


def test_a_window_over_all_layers_bounds_what_packed_rows_see(tmp_path: Path) -> None:
    """Such as Mistral's, whose configuration has no kinds of layers."""
    vlm = load_vlm(str(save_tiny_type("idefics2", tmp_path)), device="cpu")
    config = vlm.model.config.get_text_config()
    config.sliding_window = 200  # more than the probe's longest row
    assert vlm.supports_packing
    assert vlm.context == 200
    asked = [Question("explain", "Why is it so? " * 20, "The hand is odd.")] * 2
    units = [[Example(stored(photo()), asked, "real")]]
    with torch.no_grad():
        plain, packed = (float(answer_loss(vlm, vlm.model, Collator(vlm, pack=pack)(units))) for pack in (False, True))
    assert packed == pytest.approx(plain, abs=1e-5)
