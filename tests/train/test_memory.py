"""Estimates move as the choices do, and follow a real step's tensors; doctor says them in one line a config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.factories import tiny_config
from vlm_detect import cli, doctor
from vlm_detect.config import REPOSITORY
from vlm_detect.errors import UserError
from vlm_detect.models.moondream import MoondreamForConditionalGeneration
from vlm_detect.train.lora import LoraOptions
from vlm_detect.train.memory import LiveBytes, Step, estimate_memory

CONFIGS = sorted((REPOSITORY / "recipes" / "configs").glob("moondream_*gb.yaml"))
STEP = Step(images=4, crops=3, questions=2)


def parts(step, lora=LoraOptions()):  # noqa: B008  frozen
    with torch.device("meta"):
        model = MoondreamForConditionalGeneration(tiny_config())
    return estimate_memory(model, step, lora).parts


def test_each_choice_moves_what_it_should():
    plain = parts(STEP)
    assert parts(replace(STEP, checkpointing=True))["activations"] < 0.7 * plain["activations"]
    assert parts(replace(STEP, quantize="nf4"))["weights"] < plain["weights"]
    assert parts(replace(STEP, images=8))["activations"] > 1.7 * plain["activations"]
    assert parts(replace(STEP, questions=6))["activations"] > 1.5 * plain["activations"]
    assert parts(replace(STEP, dtype=torch.float32))["weights"] > 1.5 * plain["weights"]
    assert parts(STEP, LoraOptions(lora_targets="all-linear+vision"))["activations"] > plain["activations"]
    full = parts(replace(STEP, tune="full"))
    assert full["optimiser"] == 4 * parts(replace(STEP, tune="full", optimizer="adamw_bnb_8bit"))["optimiser"]
    assert full["gradients"] > plain["gradients"]


def test_live_bytes_are_those_of_the_tensors_that_are_alive():
    model = torch.nn.Linear(100, 50, bias=False)
    with LiveBytes(model) as live:
        first = torch.zeros(1000)
        second = first * 2
        assert live.live == 8000
        view = second[10:]
        del second
        assert live.live == 8000  # a view keeps the whole
        del view
        assert live.live == 4000
        model(torch.zeros(10, 100)).sum().backward()
    assert live.peak >= 4000 + 4 * (10 * 100 + 10 * 50)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_the_card_that_it_is_named_after(config):
    estimate, _ = doctor.estimate_config(str(config))
    assert estimate.total_gb < 0.95 * int(config.stem.rpartition("_")[2].removesuffix("gb"))


def test_doctor_speaks_of_the_machine_and_of_each_config(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_skeleton", lambda name: tiny_skeleton())
    cli.run(["doctor"])
    told = capsys.readouterr().out
    assert "torch" in told
    assert "extra quant: complete" in told
    assert all(config.name in told for config in CONFIGS)


def tiny_skeleton():
    with torch.device("meta"):
        return MoondreamForConditionalGeneration(tiny_config())


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [("someone/else", str(CONFIGS[0]), "estimated for vikhyatk/moondream2"), (None, "nowhere.yaml", "cannot be read")],
)
def test_what_doctor_cannot_estimate(model, config, message):
    with pytest.raises(UserError, match=message):
        list(doctor.examine(model, [config]))


def test_the_embedded_model_is_estimated_too():
    (line,) = doctor.examine("nano", [str(Path(REPOSITORY / "recipes" / "configs" / "moondream_nano.yaml"))])
    assert "GB (weights" in line
