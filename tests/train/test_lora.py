"""Targets are chosen by words; the wrapped model trains the LoRA and nothing else, and comes back equal from disk."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel

from tests.factories import tiny_moondream, tiny_vlm
from vlm_detect.errors import UserError
from vlm_detect.models.registry import adapter_base
from vlm_detect.train.lora import add_lora, select_targets
from vlm_detect.train.options import LoraOptions

TEXT = {f"model.text.blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


@pytest.mark.parametrize(
    ("targets", "last_layers", "expected"),
    [
        ("all-linear", None, TEXT),
        ("attention", None, {name for name in TEXT if "attn" in name}),
        ("all-linear+head", None, TEXT | {"model.text.lm_head"}),
        ("mlp", 1, {name for name in TEXT if "mlp" in name and "blocks.1" in name}),
    ],
)
def test_text_targets(targets, last_layers, expected):
    assert set(select_targets(tiny_moondream(), targets, last_layers)) == expected


def test_vision_adds_the_tower_and_the_connector_but_neither_heads_nor_embeddings():
    added = set(select_targets(tiny_moondream(), "all-linear+vision")) - TEXT
    assert {"model.vision.blocks.0.attn.qkv", "model.vision.proj_mlp.fc1"} <= added
    assert all(name.startswith("model.vision.") and "patch_emb" not in name for name in added)
    assert set(select_targets(tiny_moondream(), "vision")) == added


@pytest.mark.parametrize("targets", ["everything", "attention+speech"])
def test_unknown_words(targets):
    with pytest.raises(UserError, match="choose from attention"):
        LoraOptions(lora_targets=targets)


def test_nothing_selected():
    with pytest.raises(UserError, match="selects none"):
        select_targets(tiny_moondream(), "mlp", last_layers=0)


def test_only_the_lora_trains_and_equal_seeds_start_equally():
    vlms = [tiny_vlm(), tiny_vlm()]
    for vlm in vlms:
        add_lora(vlm, LoraOptions(lora_targets="attention"), seed=5)
    assert all("lora_" in name for name, p in vlms[0].model.named_parameters() if p.requires_grad)
    for (name, first), (_, second) in zip(*(vlm.model.named_parameters() for vlm in vlms), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("targets", ["all-linear", "all-linear+head"])
def test_the_adapter_names_its_base_and_reloads_to_equal_logits(tmp_path, targets):
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions(lora_targets=targets))
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[0, 1, 10, 2, 30, 31, 3]])
    with torch.no_grad():
        expected, base = vlm.model(input_ids=ids).logits, tiny_moondream()(input_ids=ids).logits
    vlm.model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert adapter_base(tmp_path) == "tiny"
    with warnings.catch_warnings():  # peft 0.21 uses a name that newer releases of transformers 5 warn about
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        reloaded = PeftModel.from_pretrained(tiny_moondream(), tmp_path)
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, expected)
    assert (expected - base).abs().max() > 1e-3
