"""The files in vlm_detect/configs/generators: each fits its generator's own way of drawing."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml

from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.presets import read_preset, with_preset
from vlm_detect.generate.render_step import complete

GENERATORS = CONFIGS / "generators"
PRESETS = sorted(path for path in GENERATORS.glob("*.yaml") if "generator" in yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_sets_everything_that_its_generator_needs(path) -> None:
    values = yaml.safe_load(path.read_text())
    assert set(values) <= {field.name for field in fields(RenderConfig)}
    completed = with_preset(RenderConfig(generator=values["generator"]), GENERATORS)
    for name in ("steps", "guidance", "render_size", "aspect", "dtype", "render_batch"):
        assert getattr(completed, name) == values[name]
    text = path.read_text()
    assert text.startswith("# ")
    assert f"--generator {values['generator']}" in text
    assert path.stem == "nano" or re.search(r"^#.*(licen[cs]e|Apache-2\.0|\bMIT\b)", text, re.MULTILINE | re.IGNORECASE)


def test_documented_generators_have_presets() -> None:
    settings = {yaml.safe_load(path.read_text())["generator"]: yaml.safe_load(path.read_text()) for path in PRESETS}
    # steps and guidance of the reference code and the model cards; guidance of at most 1 is none
    expected = {
        "stabilityai/stable-diffusion-3.5-large": (40, 4.5),
        "stabilityai/stable-diffusion-3.5-large-turbo": (4, 1.0),
        "stabilityai/stable-diffusion-3.5-medium": (40, 4.5),
        "black-forest-labs/FLUX.1-schnell": (4, 0.0),
        "black-forest-labs/FLUX.1-Kontext-dev": (28, 2.5),
        "black-forest-labs/FLUX.2-dev": (50, 4.0),
        "black-forest-labs/FLUX.2-klein-4B": (4, 1.0),
        "Qwen/Qwen-Image-Edit": (50, 4.0),
        "HiDream-ai/HiDream-I1-Full": (50, 5.0),
        "fal/AuraFlow-v0.3": (50, 3.5),
        "stabilityai/stable-diffusion-xl-base-1.0": (40, 5.0),
    }
    assert {name: (settings[name]["steps"], settings[name]["guidance"]) for name in expected} == expected
    assert all(settings[name]["render_size"] == 1024 for name in expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("generator: a/b\nstepz: 4\nguidence: 1.0\n", "stepz is not a setting of a generator; did you mean steps?"),
        ("generator: a/b\nguidence: 1.0\n", "guidence is not a setting of a generator; did you mean guidance?"),
        (
            "generator: a/b\nquantization: nf4\n",
            "quantization is not a setting of a generator; known are generator",
        ),
        ("generator: a/b\nsteps: four\n", "steps: 'four' is not an integer"),
        ("generator: a/b\nsteps: 4.5\n", "steps: 4.5 is not an integer"),
        ("generator: a/b\nsteps: true\n", "steps: True is not an integer"),
        ("generator: a/b\naspect: wide\n", "aspect: 'wide' is not one of photo, square"),
        ("generatr: a/b\n", "generatr is not a setting of a generator; did you mean generator?"),
        ("steps: 4\n", "has no generator"),
        ("- 4\n", "contains a list, not the settings"),
        ("steps: [\n", "cannot be read as YAML"),
    ],
)
def test_a_preset_with_an_unknown_key_is_refused(tmp_path, text, said) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        read_preset(path)
    with pytest.raises(UserError, match=re.escape(said)):
        complete(RenderConfig(generator=str(path)), GENERATORS)


def test_bundled_presets_are_validated_too(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("generator: a/b\nstepz: 4\nguidence: 1.0\n")
    (tmp_path / "other.yaml").write_text("base: [a dog]\n")  # no generator's
    with pytest.raises(UserError, match="did you mean steps"):
        with_preset(RenderConfig(generator="a/b"), tmp_path)
    assert with_preset(RenderConfig(generator="a/c"), tmp_path) == RenderConfig(generator="a/c")


def test_a_generator_is_one_file(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("generator: a/b\nsteps: 4\nguidance: 1\nrender_size: 512\n")
    completed = complete(RenderConfig(generator=str(path), render_size=64), GENERATORS)
    assert (completed.generator, completed.steps, completed.guidance) == ("a/b", 4, 1)
    assert completed.render_size == 64  # what is given stays
    with pytest.raises(UserError, match="no such file"):
        complete(RenderConfig(generator=str(tmp_path / "other.yaml")), GENERATORS)
