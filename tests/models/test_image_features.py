"""Chat models from cached features: losses and gradients of the pixels, and the types that need their pixels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_types import save_tiny_type
from tests.models.try_type import RECORD, photo
from tests.train.toys import stored
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage
from vlm_detect.models.base import VLM
from vlm_detect.models.generic import ChatVLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train import features as features_module
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.features import Features
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions
from vlm_detect.train.tuning import train_language_model

pytest.importorskip("transformers", minversion="5.18", reason="no forward takes image features yet")

# transformers' PaliGemmaProcessor makes arrays of tensors in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SAMPLE = ("gemma3", "qwen3_vl", "smolvlm")
NO_PLACE = ("blip", "git", "idefics", "kosmos-2", "kosmos-2.5", "mllama")  # their forward takes pixels alone
NEED_PIXELS = {**dict.fromkeys(NO_PLACE, "does not take"), "blip-2": "fails with", "emu3": "answers otherwise"}
TRAINED = [row["model_type"] for row in json.loads(RECORD.read_text(encoding="utf-8")) if row["trains"]]
IMAGES = [stored(photo(seed, size)) for seed, size in enumerate([(64, 48), (48, 80), (48, 80)])]
QUESTIONS = [Question("yes_no", "Is it AI?", "Yes."), Question("explain", "Why is it so?", "The hand is odd.")]


def tiny(model_type: str, folder: Path) -> VLM:
    vlm = load_vlm(str(save_tiny_type(model_type, folder / "base")), device="cpu")
    add_lora(vlm, LoraOptions())
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    vlm.model.eval()  # some towers drop at random while they are trained; what is cached never does
    return vlm


def loss_and_gradients(vlm: VLM, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    vlm.model.zero_grad()
    loss = answer_loss(vlm, vlm.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}


def check(vlm: VLM, images: Sequence[StoredImage], root: Path, monkeypatch: pytest.MonkeyPatch) -> Features:
    """A batch of cached features has the loss and the gradients of a batch of pixels, and no tower runs for it."""
    monkeypatch.setattr(features_module, "CHUNK", 2)  # a file of two shapes, and one of one
    features = Features.build(vlm, images, root / "features")
    units = [[Example(image, QUESTIONS, "real") for image in (images[2], images[0], images[1])]]
    for pack in (False, True):
        expected = loss_and_gradients(vlm, Collator(vlm, pack=pack)(units))
        collator = pickle.loads(pickle.dumps(Collator(vlm, pack=pack, features=features)))  # as worker processes do
        batch = collator(units)
        assert "prepared" not in batch
        with monkeypatch.context() as patched:
            towers = [module for module in vlm.model.modules() if hasattr(type(module), "get_image_features")]
            for tower in towers:
                patched.setattr(tower, "get_image_features", None)
            assert towers or vlm.has_fixed_prefix
            torch.testing.assert_close(loss_and_gradients(vlm, batch), expected, atol=1e-5, rtol=1e-3)
    return features


@pytest.mark.parametrize("model_type", SAMPLE)
def test_losses_and_gradients_equal_those_from_pixels(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = tiny(model_type, tmp_path)
    assert isinstance(vlm, ChatVLM)
    features = check(vlm, IMAGES, tmp_path, monkeypatch)
    assert Features.build(vlm, IMAGES, tmp_path / "features").folder == features.folder
    monkeypatch.setattr(vlm.template, "whole", "Look! " + vlm.template.whole)
    vlm.__dict__.pop("_prefix_ids", None)
    other = Features.build(vlm, IMAGES, tmp_path / "features")
    assert other.folder != features.folder, "another prompt has other ids before the image"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in TRAINED if name not in SAMPLE])
def test_every_type_is_cached_or_refused(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny(model_type, tmp_path)
    if model_type not in NEED_PIXELS:
        check(vlm, IMAGES, tmp_path, monkeypatch)
        return
    with pytest.raises(UserError, match=f"needs its pixels in every step: .*{NEED_PIXELS[model_type]}.*omit the flag"):
        Features.build(vlm, IMAGES, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_type_whose_forward_takes_pixels_alone_is_refused(tmp_path: Path) -> None:
    vlm = tiny("git", tmp_path)
    message = r"--cache_features: .*base needs its pixels in every step: GitForCausalLM .* does not take image features"
    with pytest.raises(UserError, match=message):
        Features.build(vlm, IMAGES, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_trying_changes_no_mode_and_blames_no_model_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny("qwen3_vl", tmp_path)
    assert isinstance(vlm, ChatVLM)
    modules = list(vlm.model.modules())
    modules[-1].train()
    modes = [module.training for module in modules]
    assert vlm.features_refusal() is None
    assert [module.training for module in modules] == modes

    def failing(self: ChatVLM) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ChatVLM, "_difference", failing)
    with pytest.raises(torch.OutOfMemoryError):
        vlm.features_refusal()


@pytest.mark.slow
def test_features_that_come_from_a_trained_embedding_are_refused(tmp_path: Path) -> None:
    """Chameleon's image tokens are looked up in the embeddings of words, which full tuning trains."""
    vlm = load_vlm(str(save_tiny_type("chameleon", tmp_path / "base")), device="cpu")
    train_language_model(vlm)
    with pytest.raises(UserError, match=r"needs a frozen tower, and 1 of .* are trained \(.*embed_tokens"):
        Features.build(vlm, IMAGES, tmp_path / "features")
