"""The nano moondream: its tokenizer keeps the official ids, and packed texts learn as texts that stand alone."""

import copy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_detect.models.base import VLM
from vlm_detect.models.generic import LlavaVLM
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.rows import Answered
from vlm_detect.nano.autoencoder import to_pixels
from vlm_detect.nano.captioner import (
    Teaching,
    build_captioner,
    facts_of,
    moondream_tower,
    pack,
    spread_other_words,
    train_captioner,
    train_tower,
)
from vlm_detect.nano.captions import sample_texts
from vlm_detect.nano.config import CaptionerConfig, TowerConfig
from vlm_detect.nano.figures import question_captioner
from vlm_detect.nano.judge import Judge
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.tinyllava import NanoTinyLlava, build_tinyllava, start_from_moondream, tinyllava_tower
from vlm_detect.nano.tokenizer import SPECIAL_TOKENS, TASK_WORDS, prompt_templates, train_tokenizer
from vlm_detect.nano.weights import halve
from vlm_detect.train.loss import answer_loss

OPTIMISATION: dict[str, Any] = {"steps": 4, "batch": 5, "lr": 1e-3, "warmup": 1}
TINY = CaptionerConfig(
    **OPTIMISATION,
    vision_width=32,
    vision_layers=1,
    vision_heads=1,
    text_width=64,
    text_layers=2,
    text_heads=1,
    enlarged=0.5,
)


@pytest.fixture(scope="module")
def photos() -> Photos:
    rng = np.random.default_rng(0)
    return Photos(rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10)


@pytest.fixture(scope="module")
def untrained(photos: Photos) -> tuple[MoondreamForConditionalGeneration, MoondreamProcessor]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(sample_texts(facts_of(photos), Random(0)), TINY.vocabulary)
    model, processor = build_captioner(TINY, tokenizer)
    return model.eval(), processor


def test_tokenizer_has_the_official_ids_and_encodes_anything(
    untrained: tuple[MoondreamForConditionalGeneration, MoondreamProcessor],
) -> None:
    tokenizer = untrained[1].tokenizer
    assert tokenizer is not None
    assert tuple(tokenizer.convert_ids_to_tokens(range(10))) == SPECIAL_TOKENS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)
    for text in ("Is this image AI-generated?", "Zürich, 東京 🙂\n\t«x»", "<|endoftext|>"):
        ids = untrained[1].encode(text)
        assert tokenizer.decode(ids) == text
        assert min(ids) >= len(SPECIAL_TOKENS)  # not even a spelled-out marker becomes one
    templates = prompt_templates(tokenizer)
    assert len(templates["query"]["prefix"]) == 3
    assert len(templates["detect"]["prefix"]) == 4
    assert all(len(ids) == 5 for ids in templates["caption"].values())
    assert TASK_WORDS["detect"] == "detect all"


@pytest.mark.parametrize("family", ["moondream", "tinyllava"])
def test_packed_texts_are_scored_as_if_alone(
    family: str, untrained: tuple[MoondreamForConditionalGeneration, MoondreamProcessor], photos: Photos
) -> None:
    vlm: VLM = MoondreamVLM(*untrained, "moondream")
    if family == "tinyllava":
        model, processor = build_tinyllava(NanoTinyLlava(), copy.deepcopy(untrained[1].tokenizer))
        vlm = LlavaVLM(model.eval(), processor, "tinyllava")
    texts = [Answered(vlm.question_ids("Is there a ship?"), vlm.answer_ids("No."))]
    texts.append(Answered(vlm.caption_ids("long"), vlm.answer_ids("A grey cat on a plain green background.")))
    with torch.inference_mode():
        embeds = vlm.encode(vlm.prepare([Image.fromarray(photos.images[0])]))
        together = answer_loss(vlm, vlm.model, {**pack(vlm, [texts]), "read": {"image_embeds": embeds}})
        alone = [
            answer_loss(vlm, vlm.model, {**pack(vlm, [[text]]), "read": {"image_embeds": embeds}}).item()
            for text in texts
        ]
    assert together.item() == pytest.approx(np.mean(alone), rel=1e-5)


def test_tinyllava_starts_from_moondreams_weights(
    untrained: tuple[MoondreamForConditionalGeneration, MoondreamProcessor], photos: Photos
) -> None:
    torch.manual_seed(0)
    moondream, processor = build_captioner(CaptionerConfig(**OPTIMISATION), untrained[1].tokenizer)
    model, _ = build_tinyllava(NanoTinyLlava(), copy.deepcopy(processor.tokenizer))
    missing = start_from_moondream(model.eval(), processor.tokenizer, moondream.eval(), processor.tokenizer)
    assert not [name for name in missing if "language_model" in name or "lm_head" in name]
    crops = to_pixels(photos.images[:2])
    words = torch.tensor([[0, 40, 41, 42]])
    with torch.inference_mode():
        seen = tinyllava_tower(model, Judge(4)).see(crops)
        torch.testing.assert_close(
            moondream.model.vision.post_ln(seen), moondream.model.vision.encode_crops(crops), rtol=0.01, atol=0.01
        )  # the norms' epsilons differ
        said = model(input_ids=words).logits[..., : len(processor.tokenizer)]
        torch.testing.assert_close(said, moondream(input_ids=words).logits, rtol=1e-4, atol=1e-4)


def test_the_shortcut_for_one_tile_is_exact(
    untrained: tuple[MoondreamForConditionalGeneration, MoondreamProcessor], photos: Photos
) -> None:
    model, processor = untrained
    with torch.inference_mode():
        inputs = processor.image_processor([Image.fromarray(image) for image in photos.images[:3]], return_tensors="pt")
        features = model.model.vision.encode_crops(to_pixels(photos.images[:3]))
        quick = model.model.vision.proj_mlp(torch.cat([features, features], dim=-1))
        torch.testing.assert_close(quick, model.encode_images(inputs["pixel_values"], inputs["tilings"]))


def test_training_exports_what_from_pretrained_loads(
    untrained: tuple[MoondreamForConditionalGeneration, MoondreamProcessor], photos: Photos, tmp_path: Path
) -> None:
    model, processor = untrained
    facts = facts_of(photos)
    judge = Judge(4)
    tower, teaching = moondream_tower(model, judge), Teaching(photos, facts, judge, distillation=0.5, grid=8)
    warm = train_tower(tower, teaching, TowerConfig(**OPTIMISATION, places=1.0), photos, tmp_path, seed=0)
    assert 0 <= warm["accuracy"] <= 1
    vlm = MoondreamVLM(model, processor, "moondream")
    assert train_captioner("words", vlm, tower, teaching, facts, config=TINY, folder=tmp_path, seed=0)["steps"] == 4
    model.save_pretrained(tmp_path / "moondream")
    processor.save_pretrained(tmp_path / "moondream")
    halve(tmp_path / "moondream")
    loaded = MoondreamForConditionalGeneration.from_pretrained(tmp_path / "moondream", dtype=torch.float32)
    again = MoondreamProcessor.from_pretrained(tmp_path / "moondream")
    inputs = again(images=[Image.fromarray(photos.images[0])], text=["What is this?"])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, rtol=0.02, atol=0.02)
    measured = question_captioner(MoondreamVLM(loaded, again, "moondream"), photos, facts, n=12, seed=0)
    assert 0 <= measured["accuracy"] <= measured["ci95"]["accuracy"][1] <= 1


def test_words_that_no_answer_has_can_be_distinguished(untrained: tuple, photos: Photos) -> None:
    model, processor = copy.deepcopy(untrained)
    vlm = MoondreamVLM(model, processor, "nano")
    head, taught = model.get_output_embeddings(), [3, 5, 7, 11]
    with torch.no_grad():  # as training leaves them: pushed away together
        head.weight[:] = torch.randn(head.weight.shape[1]) + 0.01 * torch.randn(head.weight.shape)
        head.weight[taught] = torch.randn(4, head.weight.shape[1])
        kept = head.weight[20] = torch.randn(head.weight.shape[1]) * 5  # apart already
    before = head.weight.detach().clone()
    spread_other_words(vlm, taught)
    after = head.weight.detach()
    assert after[taught].equal(before[taught])
    torch.testing.assert_close(after[20], kept)
    others = [i for i in range(len(after)) if i not in (*taught, 20)]
    apart = (before[taught] - before[taught].mean(0)).norm(dim=1).mean()
    middle = before[others].median(0).values
    torch.testing.assert_close((after[others] - middle).norm(dim=1), apart.expand(len(others)), rtol=0.05, atol=0)
    torch.testing.assert_close(after[others].mean(0), middle, rtol=0, atol=0.3)
