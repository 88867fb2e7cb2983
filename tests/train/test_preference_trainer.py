"""Preference tuning of every kind of model: the margin grows, the reference stays, and a run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.models.tiny_chat import save_tiny
from tests.train.reasoned import reasoned_images
from tests.train.test_shapes import refuse
from vlm_detect.images.stored import undecoded
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.lora import LoraOptions, add_lora
from vlm_detect.train.preference_options import PreferenceOptions
from vlm_detect.train.preferences import make_preferences
from vlm_detect.train.validation import ValidationSet

pytest.importorskip("trl", reason="needs the extra preference")
from vlm_detect.errors import UserError
from vlm_detect.train.preference_trainer import (
    PreferenceArguments,
    PreferenceCollator,
    PreferenceTrainer,
    model_inputs,
)


def arguments(folder: Path, **changes: Any) -> PreferenceArguments:
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
    }
    return PreferenceArguments(**{**options, **changes})


def make_trainer(vlm: VLM, folder: Path, *, compiled: bool = False, **changes: Any) -> PreferenceTrainer:
    rows, calibration = reasoned_images()
    made = make_preferences(rows, "toy", calibration, PreferenceOptions())
    add_lora(vlm, LoraOptions(lora_r=8))
    some, validation = made.select(range(8)), ValidationSet.from_rows(rows, 8)
    options = arguments(folder, **changes)
    held_out = {"held_out": some, "held_out_rows": rows, "validation": validation}
    return PreferenceTrainer(vlm, options, some, rows, **held_out, compiled=compiled)


def margins(trainer: PreferenceTrainer) -> list[float]:
    return [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]


MODELS = ["nano", "gemma3", "qwen2_5_vl"]
MORE = ["tinyllava-nano", "llava", "idefics3"]


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_the_margin_grows_and_the_saved_adapter_is_the_trained_one(name: str, tmp_path: Path) -> None:
    model = name if name.endswith("nano") else str(save_tiny(name, tmp_path / "model"))
    trainer = make_trainer(load_vlm(model, device="cpu"), tmp_path / "run")
    trainer.train()
    grown = margins(trainer)
    assert grown[0] == pytest.approx(0, abs=1e-6)  # the policy is its own reference at first
    assert grown == sorted(grown)
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] > grown[-1] > 0.01
    assert 0 <= metrics["eval_auroc"] <= 1
    trainer.save_model()
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == set()
    batch = next(iter(trainer.get_eval_dataloader()))
    again = load_vlm(model, adapter=tmp_path / "run", device="cpu")
    trainer.model.eval()
    with torch.no_grad():
        inputs = model_inputs(trainer.vlm, batch)
        inputs.pop("completion_mask")
        expected, found = trainer.model(**inputs).logits, again.model(**inputs).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_log_probabilities_are_those_of_the_engine(tmp_path: Path) -> None:
    """What the loss compares are the summed log-probabilities by which answers are scored everywhere else."""
    from vlm_detect.infer.asks import Ask
    from vlm_detect.infer.engine import Engine

    vlm = load_vlm("nano", device="cpu")
    rows, calibration = reasoned_images()
    made = make_preferences(rows, "toy", calibration, PreferenceOptions()).select(range(3))
    collate = PreferenceCollator(vlm, undecoded(rows), vlm.context)
    inputs = model_inputs(vlm, collate(made.to_list()))
    mask = inputs.pop("completion_mask")[:, 1:]
    with torch.no_grad():
        logprobs = vlm.model(**inputs).logits[:, :-1].log_softmax(-1)
    picked = logprobs.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1) * mask
    images = [collate.image(one).open() for one in made]
    asks = [[Ask(one["prompt"], (one["chosen"], one["rejected"]))] for one in made]
    for i, ((chosen, rejected),) in enumerate(Engine(vlm).score(images, asks)):
        assert picked[i].sum().item() == pytest.approx(chosen.logprob, abs=1e-3)
        assert picked[i + 3].sum().item() == pytest.approx(rejected.logprob, abs=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = make_trainer(load_vlm("nano", device="cpu"), tmp_path / "whole")
    whole.train()
    stopped = make_trainer(load_vlm("nano", device="cpu"), tmp_path / "run", save_strategy="steps", save_steps=3)
    stopped.args.max_steps = 3
    stopped.train()
    resumed = make_trainer(load_vlm("nano", device="cpu"), tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert margins(resumed) == pytest.approx(margins(whole), abs=1e-6)
    ours, theirs = (
        {name: value for name, value in trainer.model.named_parameters() if ".default." in name}
        for trainer in (resumed, whole)
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_a_lora_computes_in_autocasts_dtype(tmp_path: Path) -> None:
    """peft would cast every input to float32 first."""
    trainer = make_trainer(load_vlm("nano", device="cpu"), tmp_path, autocast="bf16", max_steps=1)
    plain, casts = trainer.compute_loss, set()

    def noticing(model: Any, *arguments: Any, **options: Any) -> Any:
        casts.update(one.cast_input_dtype_enabled for one in model.modules() if isinstance(one, LoraLayer))
        return plain(model, *arguments, **options)

    trainer.compute_loss = noticing  # type: ignore[method-assign]
    trainer.train()
    assert casts == {False}


def test_compiled_layers_meet_few_shapes_and_validation_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = load_vlm("nano", device="cpu")
    trainer = make_trainer(vlm, tmp_path, compiled=True, per_device_train_batch_size=1)
    plain = make_trainer(load_vlm("nano", device="cpu"), tmp_path, per_device_train_batch_size=1)
    few = {tuple(batch["ids"].shape) for batch in trainer.get_train_dataloader()}
    assert 1 <= len(few) < len({tuple(batch["ids"].shape) for batch in plain.get_train_dataloader()})
    trainer.train()
    assert trainer.shapes.seen <= few
    assert f"compiled layers: {len(trainer.shapes.seen)} shapes of rows" in capsys.readouterr().out
    for layer in vlm.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=refuse)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.shapes.compiled = False
    with pytest.raises(RuntimeError, match="a graph was compiled"):
        trainer.evaluate()
    torch.compiler.reset()


def test_models_that_cannot_be_preference_tuned_are_refused(tmp_path: Path) -> None:
    rows, calibration = reasoned_images()
    made = make_preferences(rows, "toy", calibration, PreferenceOptions())
    with pytest.raises(UserError, match="has no LoRA"):
        PreferenceTrainer(load_vlm("nano", device="cpu"), arguments(tmp_path), made, rows)
    headed = load_vlm("nano", device="cpu")
    add_lora(headed, LoraOptions(lora_targets="all-linear+head"))
    with pytest.raises(UserError, match=r"LoRA on the vocabulary head, .*: merge it first .*export RUN --to merged"):
        PreferenceTrainer(headed, arguments(tmp_path), made, rows)
    both_ways = load_vlm(str(save_tiny("paligemma", tmp_path / "model")), device="cpu")
    add_lora(both_ways, LoraOptions())
    with pytest.raises(UserError, match="bidirectional attention"):
        PreferenceTrainer(both_ways, arguments(tmp_path), made, rows)
