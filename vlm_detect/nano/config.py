"""Configuration of `recipes/nano_pretrain.py`: one frozen dataclass a stage, each a section of the YAML file.

The command line is flat, so sections pass through it as JSON; `section` turns each into its dataclass,
where an unknown key is an error. `--set renderer.steps=9000` changes one value of one section.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from vlm_detect.errors import UserError
from vlm_detect.nano.training import Optimisation

T = TypeVar("T")


@dataclass(frozen=True)
class NanoConfig:
    """What to train, from what, and where to put it."""

    stages: list[str] = field(default_factory=list, metadata={"help": "Stages to run, in this order."})
    data: str | None = field(
        default=None,
        metadata={"help": "CIFAKE folder or CIFAR-10 Hub id. Default: $VLM_DETECT_DATA/cifake, else the Hub."},
    )
    output_dir: str = field(default="runs/nano", metadata={"help": "Checkpoints, logs and the exported weights."})
    figures_dir: str | None = field(default=None, metadata={"help": "Where measured figures go. Default: output_dir."})
    install: bool = field(default=False, metadata={"help": "Copy the exported weights into the package."})
    init: str | None = field(
        default=None,
        metadata={
            "help": "Go on from the exported weights in this folder (with sd35/, moondream/), or `nano` for the "
            "installed ones. Default: from nothing."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seeds weights, batches and captions."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ... Default: a GPU where there is one."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads. Default: torch's choice."})
    vae: str = field(default="{}", metadata={"help": "JSON; see VaeConfig."})
    renderer: str = field(default="{}", metadata={"help": "JSON; see RendererConfig."})
    judge: str = field(default="{}", metadata={"help": "JSON; see JudgeConfig."})
    tower: str = field(default="{}", metadata={"help": "JSON; see TowerConfig."})
    captioner: str = field(default="{}", metadata={"help": "JSON; see CaptionerConfig."})
    tinyllava: str = field(default="{}", metadata={"help": "JSON; see CaptionerConfig."})
    set: list[str] = field(default_factory=list, metadata={"help": "section.key=value ..., over the YAML's sections."})


def section(config: NanoConfig, name: str, section_type: type[T]) -> T:
    """The YAML section `name`, with `--set name.key=value` over it, as its dataclass."""
    values = json.loads(getattr(config, name))
    for assignment in config.set:
        key, equals, value = assignment.partition("=")
        if not equals or "." not in key:
            raise UserError(f"--set {assignment}: expected section.key=value")
        if key.split(".")[0] == name:
            values[key.split(".", 1)[1]] = yaml.safe_load(value)
    return from_mapping(section_type, values, name)


def from_mapping(cls: type[T], values: dict[str, Any], name: str) -> T:
    """Build the frozen dataclass `cls`; the keys of its `optimisation` stand among its own."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "optimisation" in fields:
        inner = {f.name for f in dataclasses.fields(Optimisation)}
        shared = {key: values.pop(key) for key in list(values) if key in inner}
        values["optimisation"] = from_mapping(Optimisation, shared, name)
    if unknown := sorted(set(values) - set(fields)):
        raise UserError(f"{name}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
    required = {f.name for f in fields.values() if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(values)):
        raise UserError(f"{name}: missing keys {', '.join(missing)}; add them to the YAML's section")
    return cls(**values)
