"""Presets: the settings of a generator in a YAML file, built-in, from an installed package, or given by path.

    generator: stabilityai/stable-diffusion-3.5-medium      # a Hub id, a folder, or a registered name
    steps: 40
    guidance: 4.5

    with_preset(RenderConfig(generator="stabilityai/stable-diffusion-3.5-medium"), CONFIGS / "generators").steps    # 40
    with_given_file(RenderConfig(generator="my_generator.yaml")).generator

The command line overrides a preset. An unknown key is an error, because ignoring it would render with other settings
than the file says.
"""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vlm_detect.errors import UserError
from vlm_detect.generate.generator import GENERATORS
from vlm_detect.generate.options import RenderConfig

# The allowed keys: settings without a fixed default. Not the endpoint: a file by another person must not decide where
# photos and the key are sent.
SETTINGS = tuple(
    field.name for field in fields(RenderConfig) if field.default is None and field.name != "generator_endpoint"
)
_HINTS = get_type_hints(RenderConfig)


def read_preset(path: Path) -> dict[str, Any]:
    """The settings in a generator's YAML, `generator` among them.

    Raises:
        UserError: for an unknown key, with the nearest known one, and for a value of another type.
    """
    values = _read(path)
    known = ("generator", *SETTINGS)
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}? Known are" if near else "known are"
            raise UserError(f"{path}: {key} is not a setting of a generator; {hint} {', '.join(known)}")
        if not _fits(value, _HINTS[key]):
            raise UserError(f"{path}: {key}: {value!r} is not {_named(_HINTS[key])}")
    if not values.get("generator"):
        raise UserError(f"{path}: has no generator; add a line such as generator: owner/name")
    return values


def with_preset(config: RenderConfig, folder: Path) -> RenderConfig:
    """Fill open settings of `config` from the YAML in `folder` for the same generator."""
    for path in sorted(folder.glob("*.yaml")):
        if _read(path).get("generator") == config.generator:
            config = _filled(config, read_preset(path))
    return config


def with_given_file(config: RenderConfig) -> RenderConfig:
    """If `config.generator` is a YAML file, read it: its generator, and the settings left open."""
    path = _file_of(config.generator)
    if path is None:
        return config
    preset = read_preset(path)
    return replace(_filled(config, preset), generator=str(preset["generator"]))


def _file_of(generator: str) -> Path | None:
    """The YAML of a generator's name, by its path or registration."""
    if generator in GENERATORS:
        found = GENERATORS[generator]
        return found if isinstance(found, Path) else None
    if not generator.endswith((".yaml", ".yml")):
        return None
    if not Path(generator).is_file():
        raise UserError(f"--generator {generator}: no such file; give a generator's YAML, its name or its Hub id")
    return Path(generator)


def _filled(config: RenderConfig, preset: dict[str, Any]) -> RenderConfig:
    open_ = {name: preset[name] for name in SETTINGS if getattr(config, name) is None and name in preset}
    return replace(config, **open_)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: contains a {type(values).__name__}, not the settings of a generator")
    return values


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(_fits(value, one) for one in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _named(hint: Any) -> str:
    """A readable name of a type."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_args(hint):
        return " or ".join(_named(one) for one in get_args(hint) if one is not NoneType)
    return {int: "an integer", float: "a number", str: "a text"}.get(hint, str(hint))
