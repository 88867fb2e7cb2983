"""Configuration: frozen dataclasses from YAML and the command line, and the `run.json` that every run leaves behind.

    @dataclass(frozen=True)
    class RenderConfig:
        steps: int = field(default=28, metadata={"help": "Denoising steps."})

    (config,) = parse_config([RenderConfig], argv, doc=__doc__)      # --config FILE.yaml, then --steps 20 over it

Flags use underscores. An unknown key, in the YAML or on the command line, is an error (exit status 2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from vlm_detect.errors import UserError
from vlm_detect.schema import check_schema, with_schema

REPOSITORY = Path(__file__).resolve().parent.parent
_RECORDED_PACKAGES = ("vlm-detect", "torch", "transformers", "peft", "accelerate", "datasets", "diffusers", "pillow")


def parse_config(
    config_types: Sequence[type],
    argv: Sequence[str],
    *,
    doc: str | None = None,
    positional: Mapping[str, dict[str, Any]] | None = None,
) -> tuple[Any, ...]:
    """Fill the dataclasses of `config_types` from `--config FILE.yaml` and `argv`; the command line wins.

    `positional` maps names of positional arguments to their argparse options; where given, a namespace that holds
    them comes last in the returned tuple.
    """
    types: Any = list(config_types)  # HfArgumentParser types its argument by a NewType of its own
    parser = _Parser(types, description=doc, formatter_class=_HelpFormatter, allow_abbrev=False)
    for name, options in (positional or {}).items():
        parser.add_argument(name, **options)
    parser.add_argument(
        "--config", default=None, metavar="YAML", help="flags and values as YAML; the command line wins"
    )
    known = _config_flag(argv)
    if known is not None:
        fields = {f.name for config_type in config_types for f in dataclasses.fields(config_type)}
        values = _read_yaml(parser, known)
        if unknown := sorted(str(key) for key in set(values) - fields):
            near = [name for key in unknown for name in get_close_matches(key, fields, 1)]
            parser.error(f"{known}: unknown keys {', '.join(unknown)}" + (f"; near {', '.join(near)}" if near else ""))
        # Through argparse, so that YAML values are checked and converted exactly as flags are; later flags win.
        argv = [*_as_flags(values), *argv]
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    except (UserError, ValueError, TypeError, ImportError) as error:  # a dataclass refuses a value, in its own words
        parser.error(" ".join(str(error).split()))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # `--config` itself leaves a namespace behind the dataclasses; it holds the positional arguments too.
    return tuple(parsed) if positional else tuple(parsed[: len(config_types)])


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Keeps the lines of a program's docstring; says each flag's default, and of a `--no_X` that it is the opposite."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.nargs == 0 and action.const is False:
            return f"Turn --{action.dest} off."
        default = getattr(action.default, "value", action.default)  # of an enum
        if default is None or default is False or default in ("", SUPPRESS, [], {}) or "default" in text.lower():
            return text
        shown = " ".join(str(item) for item in default) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line: a usage of a hundred and more flags would bury it."""
        print(f"error: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def check_at_least(options: Any, least: float, *names: str) -> None:
    """UserError where one of these settings is given and below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: give {least:g} or more")


def check_between(options: Any, least: float, most: float, *names: str) -> None:
    """UserError where one of these settings is given and outside of `least` to `most`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give {least:g} to {most:g}")


def _config_flag(argv: Sequence[str]) -> str | None:
    """The value of `--config`, read ahead of the parser because the YAML supplies the parser's other arguments."""
    for i, arg in enumerate(argv):
        if arg == "--config" and i + 1 < len(argv):
            return argv[i + 1]
        if arg.startswith("--config="):
            return arg.partition("=")[2]
    return None


def _read_yaml(parser: HfArgumentParser, path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        parser.error(f"--config {path}: {error.strerror}")
    except yaml.YAMLError as error:
        parser.error(f"--config {path}: not YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"--config {path}: holds a {type(values).__name__}, not a mapping of flags to values")
    return values


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        flags.append(f"--{name}")
        if isinstance(value, list):
            flags += [str(item) for item in value]
        elif isinstance(value, dict):
            flags.append(json.dumps(value))
        else:
            flags.append(str(value))
    return flags


def git_commit() -> str | None:
    """The commit of the source tree (`-dirty` appended where files differ), or None outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which a result depends."""
    found = {"python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON by one atomic rename, so that a reader never sees half a file."""
    path = Path(path)
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    make_readable(Path(temporary))
    Path(temporary).replace(path)


def make_readable(*paths: Path) -> None:
    """Give files the mode that the umask allows: mkstemp, and safetensors by it, write for their owner alone."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in paths:
        path.chmod(0o666 & ~umask)


def write_run_json(out: str | Path, config: Any, **facts: Any) -> dict[str, Any]:
    """Write `out/run.json`: the full configuration, command, commit, versions and whatever else `facts` holds."""
    record = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "versions": versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config if isinstance(config, dict) else dataclasses.asdict(config),
        **facts,
    }
    record = with_schema("run", record)
    write_json(Path(out) / "run.json", record)
    return record


def read_run_json(out: str | Path) -> dict[str, Any] | None:
    """The record that `write_run_json` left in `out`, or None where there is none.

    Raises:
        UserError: where a newer version wrote it.
    """
    path = Path(out) / "run.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    check_schema("run", record, path)
    return record
