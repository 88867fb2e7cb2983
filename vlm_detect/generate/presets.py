"""A generator's own settings, one YAML each: those of this package, of an installed one, or a file that is given.

    generator: stabilityai/stable-diffusion-3.5-medium      # a Hub id, a folder, or a registered name
    steps: 40
    guidance: 4.5

    with_preset(RenderConfig(generator="stabilityai/stable-diffusion-3.5-medium"), CONFIGS / "generators").steps    # 40
    with_given_file(RenderConfig(generator="my_generator.yaml")).generator

A setting that is given on the command line stays. A key that is no setting is an error: it would be ignored, and what
was rendered would not be what the file says.
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

# What a file can say: the settings that a run leaves to the generator.
SETTINGS = tuple(field.name for field in fields(RenderConfig) if field.default is None)
_HINTS = get_type_hints(RenderConfig)


def read_preset(path: Path) -> dict[str, Any]:
    """The settings in a generator's YAML, `generator` among them.

    Raises:
        UserError: for a key that is no setting, with the nearest that is, and for a value of another type.
    """
    values = _read(path)
    known = ("generator", *SETTINGS)
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}? Known are" if near else "known are"
            raise UserError(f"{path}: {key} is no setting of a generator; {hint} {', '.join(known)}")
        if not _fits(value, _HINTS[key]):
            raise UserError(f"{path}: {key}: {value!r} is not {_named(_HINTS[key])}")
    if not values.get("generator"):
        raise UserError(f"{path}: names no generator; add a line such as generator: owner/name")
    return values


def with_preset(config: RenderConfig, folder: Path) -> RenderConfig:
    """`config` with what it leaves open taken from the YAML in `folder` that is for the same generator."""
    for path in sorted(folder.glob("*.yaml")):
        if _read(path).get("generator") == config.generator:
            config = _filled(config, read_preset(path))
    return config


def with_given_file(config: RenderConfig) -> RenderConfig:
    """`config` with the YAML that it names as its generator read: its generator, and what the run leaves open."""
    path = _file_of(config.generator)
    if path is None:
        return config
    preset = read_preset(path)
    return replace(_filled(config, preset), generator=str(preset["generator"]))


def _file_of(generator: str) -> Path | None:
    """The YAML that a generator's name stands for, by its path or as it was registered."""
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
        raise UserError(f"{path}: holds a {type(values).__name__}, not settings of a generator")
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
    """A type as a user would say it."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_args(hint):
        return " or ".join(_named(one) for one in get_args(hint) if one is not NoneType)
    return {int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))
