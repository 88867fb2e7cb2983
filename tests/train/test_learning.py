"""It learns: on a separable set the loss falls and verdicts become right; on shuffled labels nothing is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from tests.factories import tiny_vlm
from tests.train.toys import toy_images, toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.machine import default_dtype
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.examples import Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.validation import ValidationSet, scores_of


def trained(tmp_path, *, shuffle_labels=False, **changes):
    """A trainer that has gone through 32 pairs; losses in `state.log_history`."""
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions())
    settings = {"num_train_epochs": 8, "learning_rate": 5e-3, "save_strategy": "no", "load_best_model_at_end": False}
    args = TrainArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **(settings | changes))
    questions = QuestionOptions(questions_per_image=2, shuffle_labels=shuffle_labels)
    trainer = DetectorTrainer(
        vlm, args, Units(toy_pairs(32), questions), ValidationSet.from_rows(toy_pairs(12, seed=1))
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_on_a_separable_set_the_loss_falls_and_verdicts_become_right(tmp_path):
    trainer = trained(tmp_path)
    assert np.mean(losses(trainer)[-4:]) < 0.1 * np.mean(losses(trainer)[:4])
    scores = scores_of(trainer.validation_odds(), trainer.validation.generated)
    assert scores["auroc"] > 0.99
    assert scores["balanced_accuracy"] > 0.95
    assert scores["log_loss"] < 0.2


def test_on_shuffled_labels_the_format_is_learned_but_not_the_class(tmp_path):
    trainer = trained(tmp_path, shuffle_labels=True)
    assert losses(trainer)[-1] < losses(trainer)[0]  # what an answer looks like can be learned
    scores = scores_of(trainer.validation_odds(), trainer.validation.generated)
    assert scores["log_loss"] > 0.6  # ln 2 = 0.69 is knowing nothing


def test_a_non_finite_loss_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="lower --learning_rate"):
        trained(tmp_path, learning_rate=1e20, max_grad_norm=0.0, warmup_steps=0)


def test_autocast_is_around_the_whole_step(tmp_path, monkeypatch):
    seen = {}

    def noticing(vlm, model, batch, count, smoothing):
        layers = [module for module in vlm.model.modules() if isinstance(module, LoraLayer)]
        casts = {layer.cast_input_dtype_enabled for layer in layers}  # to float32, by peft
        seen.update(tower=torch.is_autocast_enabled("cpu"), dtype=torch.get_autocast_dtype("cpu"), casts=casts)
        return answer_loss(vlm, model, batch, count, smoothing=smoothing)

    monkeypatch.setattr("vlm_detect.train.trainer.answer_loss", noticing)
    trained(tmp_path, autocast="bf16", max_steps=1)
    assert seen == {"tower": True, "dtype": torch.bfloat16, "casts": {False}}
    trained(tmp_path, autocast="no", max_steps=1)
    assert (seen["tower"], seen["casts"]) == (False, {True})


def test_auto_precision_is_what_the_device_has_instructions_for(tmp_path, monkeypatch):
    for flags, expected in (({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        args = TrainArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, autocast="auto")
        assert (args.bf16, args.autocast) == (expected, "auto")
    with pytest.raises(UserError, match="--autocast bf16 and --bf16 or --fp16 say the same"):
        TrainArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, autocast="bf16", bf16=True)


def test_a_gpu_that_emulates_bfloat16_uses_float32(monkeypatch):
    """As torch's own answer without the argument would have it for a T4 or V100."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert default_dtype(torch.device("cuda")) == torch.float32


def test_validation_needs_both_classes():
    with pytest.raises(UserError, match="3 real and 0 generated"):
        ValidationSet.from_rows(toy_images(["real"] * 3 + ["edited"]))


def test_validation_counts_each_photo_once_and_keeps_the_classes_even():
    rows = toy_pairs(4)
    doubled = rows.select([0, 0, 1, 2, 3])
    assert ValidationSet.from_rows(doubled).generated.tolist() == [False] * 4 + [True] * 5
    assert ValidationSet.from_rows(doubled, limit=4).generated.tolist() == [False, False, True, True]
