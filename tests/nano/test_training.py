"""The shared training loop: a resumed run is the uninterrupted one, and configuration mistakes are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from vlm_detect.config import CONFIGS, parse_config
from vlm_detect.errors import UsageError, UserError
from vlm_detect.nano.config import JudgeConfig, NanoConfig, Optimisation, section
from vlm_detect.nano.judge import frechet_distance
from vlm_detect.nano.photos import HELD_OUT, Photos, load_photos
from vlm_detect.nano.training import _optimizers, learning_rate, train

RECIPE = Optimisation(steps=12, batch=4, lr=0.05, warmup=2, ema=0.9, log_every=3, save_every=6)


def fit(folder: Path, recipe: Optimisation) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))

    def loss_of(generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(recipe.batch, 3, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).pow(2).mean()}

    train("line", model, loss_of, recipe, folder=folder, seed=1)
    return model[0].weight.detach()


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_equals_uninterrupted(tmp_path: Path, muon: bool, precision: Literal["float32", "bfloat16"]) -> None:
    recipe = replace(RECIPE, decay=0.0, muon=muon, precision=precision)
    whole = fit(tmp_path / "whole", recipe)
    fit(tmp_path / "parts", replace(recipe, steps=6))
    torch.testing.assert_close(fit(tmp_path / "parts", recipe), whole, rtol=0, atol=0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "line.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 12]


def test_muon_takes_the_matrices_of_linear_layers_only() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "inner": nn.Linear(4, 4), "lm_head": nn.Linear(4, 5)})
    muon, adamw = _optimizers(model, replace(RECIPE, muon=True))
    assert [p is model["inner"].weight for group in muon.param_groups for p in group["params"]] == [True]
    assert sum(p.numel() for group in adamw.param_groups for p in group["params"]) == 20 + 4 + 20 + 5
    assert len(_optimizers(model, RECIPE)) == 1


def test_learning_rate_rises_holds_and_falls() -> None:
    recipe = Optimisation(steps=100, batch=1, lr=1.0, warmup=10, decay=0.2)
    assert [round(learning_rate(step, recipe), 2) for step in (0, 9, 50, 80, 90, 99)] == [0.1, 1, 1, 1, 0.5, 0.05]


def test_errors_in_sections_name_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("stages: [judge]\njudge: {steps: 3, batch: 2, lr: 0.1, betas: [0.8, 0.9]}")
    (config,) = parse_config([NanoConfig], ["--config", str(good), "--judge.steps=7", "--judge.width", "8"])
    assert section(config, "judge") == JudgeConfig(steps=7, batch=2, lr=0.1, betas=(0.8, 0.9), width=8)
    with pytest.raises(UsageError, match="section vae is missing"):
        section(config, "vae")
    for arguments, said in (
        (["--judge.stepz", "7"], "--judge.stepz: no such flag"),
        (["--judge.lr", "0.1"], "--judge.steps is missing"),
        (["--stages", "cook"], "--stages: cook: choose from vae, judge"),
    ):
        with pytest.raises(SystemExit) as ended:
            parse_config([NanoConfig], arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipes").glob("nano_*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_its_stages_sections(path: Path) -> None:
    (config,) = parse_config([NanoConfig], ["--config", str(path)])
    needed = {"tokenizer": "captioner"}
    assert all(section(config, needed.get(stage, stage)) for stage in config.stages)


def test_split_is_the_first_of_the_order() -> None:
    photos = Photos(np.zeros((2 * HELD_OUT * 5, 1, 1, 3), np.uint8), np.arange(2 * HELD_OUT * 5))
    training, held_out = photos.split()
    assert len(held_out) == HELD_OUT
    assert set(training.labels).isdisjoint(held_out.labels)


def test_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(20000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # a shift of 2 in one dimension costs 4, a standard deviation of 3 instead of 1 in three dimensions 3 * 4
    assert frechet_distance(a, 3 * rng.normal(size=(20000, 3)) + [2, 0, 0]) == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize(("name", "says"), [("empty", "no train-\\*.parquet"), ("none", "no folder here")])
def test_missing_photographs_are_one_line(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        load_photos(str(tmp_path / name), tmp_path / "photos.npz")
