"""A stored LoRA comes back whole, also where a rule for the names of old checkpoints fits the model's own names."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.models.tiny_types import make_tiny_type
from vlm_detect.models.lora_weights import set_weights
from vlm_detect.models.registry import load_adapter


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path, dict[str, torch.Tensor]]:
    """A base, and the folder and weights of a LoRA on its shared experts, which peft renames."""
    base, _ = make_tiny_type("mistral_large4")
    config = LoraConfig(r=2, target_modules=r".*shared_experts\.(up|down)_proj", init_lora_weights=False)
    model = get_peft_model(base, config)
    folder = tmp_path_factory.mktemp("lora")
    model.save_pretrained(folder)
    weights = {name: one.detach().clone() for name, one in model.named_parameters() if "lora_" in name}
    return model.unload(), folder, weights


def missed(model: PeftModel, weights: dict[str, torch.Tensor]) -> set[str]:
    found = dict(model.named_parameters())
    return {name for name, weight in weights.items() if not torch.equal(found[name], weight)}


def test_every_weight_comes_back(saved: tuple) -> None:
    base, folder, weights = saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, str(folder))
    assert missed(model, weights) == set(weights), "peft knows these names now: `set_weights` can go"
    assert set_weights(model, folder)
    assert not missed(model, weights)
    model.unload()


def test_a_loaded_run_has_every_weight(saved: tuple) -> None:
    base, folder, weights = saved
    model = load_adapter(base, folder)
    assert weights
    assert not missed(model, weights)
    model.unload()


def test_an_adapter_with_other_names_is_left_to_peft(saved: tuple) -> None:
    base, folder, _ = saved
    other = get_peft_model(base, LoraConfig(r=2, target_modules=r".*shared_experts\.up_proj"))
    before = {name: one.clone() for name, one in other.named_parameters()}
    assert not set_weights(other, folder)
    assert not missed(other, before)
    other.unload()
