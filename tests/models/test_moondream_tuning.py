"""The ways of tuning that the standard tools give: rsLoRA, DoRA, a 4-bit base, compiled layers, full tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from tests.factories import tiny_moondream
from tests.models.test_moondream import QUESTIONS, make_processor, noise_images
from vlm_detect.models.moondream import MoondreamForConditionalGeneration
from vlm_detect.models.registry import load_adapter
from vlm_detect.train.tuning import keep_weights_in_scoring

LAYERS = r".*\.(text|vision)\.blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"


def train(model: Any, inputs: Any, steps: int = 5, lr: float = 1e-2) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}])
def test_lora_variants_train(options: dict[str, bool]) -> None:
    model = tiny_moondream()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=LAYERS, **options)).train()
    losses = train(tuned, inputs)
    assert losses[-1] < losses[0] - 0.1


def test_qlora_on_nf4_trains_and_reloads(tmp_path: Path) -> None:
    base = tiny_moondream()
    base.save_pretrained(tmp_path / "base")
    inputs = make_processor(base)(images=noise_images(), text=QUESTIONS)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "region"],
    )

    def load() -> Any:
        model = MoondreamForConditionalGeneration.from_pretrained(
            tmp_path / "base", quantization_config=quantised, dtype=torch.float32
        )
        keep_weights_in_scoring(model)
        return model

    model = load()
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kinds["model.vision.blocks.0.attn.qkv"] == kinds["model.text.blocks.1.mlp.fc2"] == "Linear4bit"
    assert kinds["model.text.lm_head"] == "Linear"
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=LAYERS)).train()
    losses = train(tuned, inputs)
    assert losses[-1] < losses[0] - 0.1
    tuned.save_pretrained(tmp_path / "run")
    with torch.no_grad():
        expected = tuned.eval()(**inputs).logits
        again = load_adapter(load(), tmp_path / "run").eval()(**inputs).logits
    assert torch.allclose(again, expected, atol=1e-5)


def test_a_compiled_layer_has_no_graph_breaks_and_equals_eager() -> None:
    model = tiny_moondream()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)
    with torch.no_grad():
        expected = model(**inputs).logits
        for block in (*model.model.text.blocks, *model.model.vision.blocks):
            block.compile(fullgraph=True, backend="aot_eager")
        assert torch.allclose(model(**inputs, use_cache=False).logits, expected, atol=1e-5)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.text.blocks[0].attn.qkv.weight.grad is not None


def test_full_tuning_of_the_text_model_does_not_change_the_tower() -> None:
    model = tiny_moondream().train()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)
    model.model.vision.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = train(model, inputs, lr=1e-3)
    assert losses[-1] < losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(name.startswith("model.text.") for name in changed)


def test_bfloat16_trains_without_a_nan() -> None:
    model = tiny_moondream().to(torch.bfloat16).train()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=LAYERS))
    losses = train(tuned, inputs)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < losses[0]
