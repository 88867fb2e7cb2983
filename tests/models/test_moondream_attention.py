"""Attention implementations give the same logits, and one word sets them for tower and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.factories import tiny_moondream
from tests.models.test_moondream import QUESTIONS, make_processor, noise_images
from tests.models.tiny_chat import save_tiny
from tests.train.toys import toy_pairs
from vlm_detect.models.attention import attention_of
from vlm_detect.models.moondream import MoondreamForConditionalGeneration
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Units
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import QuestionOptions

FLASH = "flash_stand_in"


@torch.no_grad()
def test_implementations_give_the_same_logits() -> None:
    model = tiny_moondream()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)
    real = inputs["attention_mask"].bool()  # what stands at padding is nobody's business
    model.set_attn_implementation("eager")
    expected = model(**inputs).logits[real]
    model.set_attn_implementation("sdpa")
    assert torch.allclose(model(**inputs).logits[real], expected, atol=1e-5)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A stand-in for the kernel, which is not on a CPU: knows no masks, as the kernel, and notes who calls it."""
    calls: list[tuple[str, Any]] = []

    def stand_in(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        assert attention_mask is None, "flash kernels take no mask"
        calls.append((type(module).__name__, kwargs.get("is_causal")))
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLASH, stand_in)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *args, **kwargs: None)
    return calls


@torch.no_grad()
def test_flash_runs_in_the_tower_and_sdpa_in_the_decoder(flash: list[tuple[str, Any]], tmp_path: Any) -> None:
    plain = tiny_moondream()
    inputs = make_processor(plain)(images=noise_images(), text=QUESTIONS)
    expected = plain(**inputs).logits
    ids = plain.generate(**inputs, max_new_tokens=8)
    plain.save_pretrained(tmp_path)

    loaded = MoondreamForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=FLASH)
    plain.set_attn_implementation(FLASH)
    for model in (loaded, plain):
        assert attention_of(model.config.vision_config) == FLASH
        assert attention_of(model.config.text_config) == "sdpa"
        flash.clear()
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)
        assert set(flash) == {("MoondreamVisionAttention", False)}
        assert torch.equal(model.generate(**inputs, max_new_tokens=8), ids)


@pytest.mark.parametrize("architecture", ["llava", "gemma3"])
def test_decoders_of_other_families_keep_their_masks(architecture, flash, tmp_path: Path) -> None:
    """Packed rows reach a decoder with masks of four dimensions, which a flash kernel would read as lengths."""
    folder = save_tiny(architecture, tmp_path / "model")
    units = Units(toy_pairs(2), QuestionOptions(questions_per_image=2))
    losses = []
    for attention in ("sdpa", FLASH):
        vlm = load_vlm(str(folder), attn_implementation=attention)
        batch = Collator(vlm, pack=True)([units[0, 0], units[0, 1]])
        losses.append(answer_loss(vlm, vlm.model, batch))
        assert attention_of(vlm.model.config.get_text_config()) == "sdpa"
    assert flash  # the tower's
    assert not any("Text" in name or "Decoder" in name for name, _ in flash)
    assert torch.allclose(*losses, atol=1e-5)


def test_missing_flash_attention_is_refused() -> None:
    with pytest.raises((ImportError, ValueError), match=r"(?i)flash"):
        tiny_moondream().set_attn_implementation("flash_attention_2")
