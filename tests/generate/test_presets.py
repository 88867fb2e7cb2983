"""The files in vlm_detect/configs/generators: each fits its generator's own way of drawing."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from vlm_detect.config import CONFIGS
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.render_step import with_preset

GENERATORS = CONFIGS / "generators"
PRESETS = sorted(path for path in GENERATORS.glob("*.yaml") if "generator" in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_leaves_nothing_open_that_its_generator_needs(path) -> None:
    values = yaml.safe_load(path.read_text())
    assert set(values) <= {field.name for field in fields(RenderConfig)}
    completed = with_preset(RenderConfig(generator=values["generator"]), GENERATORS)
    for name in ("steps", "guidance", "render_size", "aspect", "dtype", "render_batch"):
        assert getattr(completed, name) == values[name]
    assert path.read_text().startswith("# ")
    assert f"--generator {values['generator']}" in path.read_text()


def test_the_generators_that_are_told_of_have_presets() -> None:
    settings = {yaml.safe_load(path.read_text())["generator"]: yaml.safe_load(path.read_text()) for path in PRESETS}
    # steps and guidance of the reference code and the model cards; guidance of at most 1 is none
    expected = {
        "stabilityai/stable-diffusion-3.5-large": (40, 4.5),
        "stabilityai/stable-diffusion-3.5-large-turbo": (4, 1.0),
        "stabilityai/stable-diffusion-3.5-medium": (40, 4.5),
        "black-forest-labs/FLUX.1-schnell": (4, 0.0),
        "stabilityai/stable-diffusion-xl-base-1.0": (40, 5.0),
    }
    assert {name: (settings[name]["steps"], settings[name]["guidance"]) for name in expected} == expected
    assert all(settings[name]["render_size"] == 1024 for name in expected)
