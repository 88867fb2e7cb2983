"""What a training computes in: bfloat16 where the device has it, the LoRA too, whose weights stay float32."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import yaml

from tests.factories import tiny_vlm
from tests.models.tiny_chat import save_tiny
from tests.train.toys import stored, toy_image, toy_pairs
from vlm_detect import machine
from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError
from vlm_detect.machine import dtype_of, prepare_training
from vlm_detect.models import registry
from vlm_detect.models.generic import ChatVLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, Units
from vlm_detect.train.lora import add_lora, inputs_left_to_autocast
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions, ModelOptions, QuestionOptions
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.tuning import loading, scale_float16


def learner(name: str, checkpointing: bool):
    """A model in bfloat16 with a LoRA that has learned something, and a batch for it."""
    vlm = tiny_vlm() if name == "moondream" else load_vlm("tinyllava-nano", device="cpu")
    vlm.model.bfloat16()
    add_lora(vlm, LoraOptions(lora_r=4, train_connector=vlm.connector is not None))
    torch.manual_seed(1)
    for parameter in vlm.model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            with torch.no_grad():
                parameter += 0.02 * torch.randn_like(parameter)
    if checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    side = getattr(vlm.model.config.vision_config, "image_size", 32)
    image = stored(toy_image(False, np.random.default_rng(0), side))
    asked = [Question("yes_no", "Is it?", "No."), Question("yes_no", "Is it real?", "Yes.")]
    return vlm, Collator(vlm, pack=True)([[Example(image, asked, "real")] * 2])


def step(vlm, batch, autocast: bool):
    """Loss and gradients of a step, as the trainer makes it with and without autocast."""
    vlm.model.train().zero_grad()
    if autocast:
        with inputs_left_to_autocast(vlm.model):
            with torch.autocast("cpu", torch.bfloat16):
                loss = answer_loss(vlm, vlm.model, copy.copy(batch))
            loss.backward()
    else:
        loss = answer_loss(vlm, vlm.model, copy.copy(batch))
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("name", "checkpointing"), [("moondream", False), ("moondream", True), ("tinyllava", False)])
def test_a_lora_computes_in_bfloat16_under_autocast_with_float32_weights(name, checkpointing) -> None:
    vlm, batch = learner(name, checkpointing)
    read: list[torch.dtype] = []
    layers = [module for part, module in vlm.model.named_modules() if part.endswith("lora_A.default")]
    for layer in layers:
        layer.register_forward_hook(lambda module, given, out: read.extend([given[0].dtype, out.dtype]))
    plain, plain_gradient = step(vlm, batch, autocast=False)
    assert set(read) == {torch.float32}
    read.clear()
    loss, gradient = step(vlm, batch, autocast=True)
    assert set(read) == {torch.bfloat16}
    assert len(read) == 2 * len(layers) * (2 if checkpointing else 1)
    assert gradient.dtype == torch.float32
    assert loss == pytest.approx(plain, rel=0.01)
    assert torch.cosine_similarity(gradient, plain_gradient, dim=0) > 0.99
    step(vlm, batch, autocast=False)  # peft's own casts are back
    assert read[-1] == torch.float32


@pytest.mark.parametrize(
    ("has_bfloat16", "flags", "expected"),
    [
        (True, {}, {"bf16": True, "fp16": False}),
        (False, {}, {"bf16": False, "fp16": False}),
        (True, {"fp16": True}, {"bf16": False, "fp16": True}),
        (True, {"autocast": "no"}, {"bf16": False, "fp16": False}),
        (False, {"autocast": "fp16"}, {"bf16": False, "fp16": True}),
        (True, {"use_cpu": True}, {"bf16": False, "fp16": False}),
    ],
)
def test_on_a_gpu_a_step_is_autocast_where_no_flag_says_otherwise(has_bfloat16, flags, expected, monkeypatch) -> None:
    monkeypatch.setattr(machine, "best_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind: kind == "cuda" and has_bfloat16)
    arguments = TrainArguments.__new__(TrainArguments)
    for name, value in {"bf16": False, "fp16": False, "use_cpu": False, "autocast": None, **flags}.items():
        setattr(arguments, name, value)
    arguments._set_precision()
    assert {name: getattr(arguments, name) for name in expected} == expected


def test_weights_that_overflow_in_float16_are_refused_by_name(tmp_path) -> None:
    vlm = tiny_vlm()
    assert vlm.overflows_in_float16
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"--dtype float16: {tmp_path} was trained in bfloat16.*use bfloat16, or float"):
        load_vlm(str(tmp_path), dtype=torch.float16)
    assert load_vlm("nano", dtype=torch.float16, device="cpu").model.dtype == torch.float16
    with pytest.raises(UserError, match="--autocast fp16: "):
        vlm.refuse_float16("--autocast fp16")


def test_the_trainer_takes_weights_in_half_precision_under_autocast(tmp_path) -> None:
    """accelerate hands out states in float32, which a head in half precision does not read outside of autocast."""
    vlm = cast(ChatVLM, load_vlm("tinyllava-nano", dtype=torch.bfloat16, device="cpu"))
    add_lora(vlm, LoraOptions(lora_r=4))
    flags = {"autocast": "bf16", "use_cpu": True, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    args = TrainArguments(output_dir=str(tmp_path), report_to="none", load_best_model_at_end=False, **flags)
    trainer = DetectorTrainer(vlm, args, Units(toy_pairs(1), QuestionOptions(questions_per_image=1)))
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
    assert vlm.head_is_last


def test_older_gpus_compute_in_float16_what_was_trained_in_it(monkeypatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind: False)
    for published, expected in (("float16", torch.float16), ("bfloat16", torch.float32), (None, torch.float32)):
        trained = ChatVLM.trained_in_float16({"torch_dtype": published} if published else {})
        assert machine.default_dtype(gpu, trained_in_float16=trained) is expected
    assert machine.default_dtype(torch.device("mps"), trained_in_float16=True) is torch.float32
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind: True)
    assert machine.default_dtype(gpu, trained_in_float16=True) is torch.bfloat16


def test_a_model_of_transformers_that_was_published_in_bfloat16_is_refused_in_float16(tmp_path) -> None:
    save_tiny("llava", tmp_path)
    assert load_vlm(str(tmp_path), dtype=torch.float16, device="cpu").model.dtype is torch.float16
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    with pytest.raises(UserError, match=r"--dtype float16: .* was trained in bfloat16"):
        load_vlm(str(tmp_path), dtype=torch.float16, device="cpu")
    vlm = load_vlm(str(tmp_path), device="cpu")
    with pytest.raises(UserError, match=r"--autocast fp16: .* was trained in bfloat16"):
        scale_float16(SimpleNamespace(fp16=True), vlm)


def test_weights_that_are_trained_are_not_float16(monkeypatch) -> None:
    with pytest.raises(UserError, match="--tune full cannot train weights in float16"):
        ModelOptions(tune="full", dtype="float16")
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind: False)
    assert loading(ModelOptions(tune="full"), torch.device("cuda"))["dtype"] is torch.float32
    assert loading(ModelOptions(), torch.device("cuda"))["dtype"] is None


@pytest.mark.parametrize(("free_gb", "chosen"), [(10.0, "nano"), (13.0, "vikhyatk/moondream2")])
def test_auto_counts_float32_weights_twice(free_gb, chosen, monkeypatch) -> None:
    monkeypatch.setattr(registry, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(registry, "free_accelerator_gb", lambda: free_gb)
    for has_bfloat16, expected in ((False, chosen), (True, "vikhyatk/moondream2")):
        monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind, has=has_bfloat16: has)
        assert registry.resolve_id("auto").name == expected
    monkeypatch.setattr(machine, "computes_in_bfloat16", lambda kind: False)
    assert registry.resolve_id("auto", "tinyllava").name == "tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B"


def test_configs_leave_the_dtype_to_the_device() -> None:
    given = {
        path.stem: yaml.safe_load(path.read_text()).get("dtype", "auto") for path in CONFIGS.glob("recipes/*.yaml")
    }
    assert {name for name, dtype in given.items() if dtype != "auto"} == {"moondream_full_80gb"}
    assert dtype_of("auto") is None


@pytest.mark.parametrize(
    ("kind", "wants_float32", "expected"), [("cuda", True, ["high"]), ("cuda", False, []), ("cpu", True, [])]
)
def test_float32_on_purpose_is_tf32_on_a_gpu(kind, wants_float32, expected, monkeypatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    for name in ("use_cpu_cores", "keep_freed_memory"):
        monkeypatch.setattr(machine, name, lambda *threads: None)
    prepare_training(kind, 1, wants_float32=wants_float32)
    assert chosen == expected
