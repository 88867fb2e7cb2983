"""Configuration: frozen dataclasses from YAML and the command line, and the `run.json` that every run writes.

    @dataclass(frozen=True)
    class RenderConfig:
        steps: int = field(default=28, metadata={"help": "Denoising steps."})

    (config,) = parse_config([RenderConfig], argv, doc=__doc__)      # --config FILE.yaml; --steps 20 overrides it

    vlm-detect train moondream --config moondream_lora --learning_rate 1e-4     # a config of the package, by its name

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import yaml

from vlm_detect.errors import UsageError, UserError
from vlm_detect.flags import Deferred, as_flags, build, check_keys, defaults_of, flags_of, make_parser, parse_flags
from vlm_detect.plugins import plugin_versions
from vlm_detect.schema import check_schema, with_schema

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).parent / "configs"  # of recipes, generators and cards, by name
_RECORDED_PACKAGES = ("vlm-detect", "torch", "transformers", "peft", "accelerate", "datasets", "diffusers", "pillow")


def parse_config(
    config_types: Sequence[type | Deferred], argv: Sequence[str], *, doc: str | None = None
) -> tuple[Any, ...]:
    """Fill the dataclasses of `config_types` from `--config FILE.yaml` and `argv`; the command line wins.

    Handles `--help` and `--version`; invalid arguments are reported in one line (exit status 2). `vlm_detect.flags`
    documents the metadata of fields.
    """
    helping = "-h" in argv or "--help" in argv
    deferred = [one for one in config_types if isinstance(one, Deferred)]
    types = [_type_of(one, helping) for one in config_types]
    flags = [flag for one in types for flag in flags_of(one)]
    if helping:
        known = {flag.name for flag in flags}
        flags += [flag for one in deferred for flag in one.listed() if flag.name not in known]
    own_config = any(flag.name == "config" for flag in flags)
    flags += [] if own_config else flags_of(_ConfigFile)
    replaced = {name: said for one in deferred for name, said in one.replaced.items()}
    parser = make_parser(flags, doc, help_only=helping)
    try:
        given = parse_flags(parser, flags, argv, replaced)
        if not own_config and (file := given.pop("config", None)):
            path = find_config(file)
            values = _flattened(_read_yaml(path), {flag.name for flag in flags})
            check_keys(list(values), flags[:-1], str(path), replaced)
            # The parser checks and converts YAML values exactly like flags.
            given = parse_flags(parser, flags, as_flags(values)) | given
        given = {name: value for one in deferred for name, value in defaults_of(one.defaults).items()} | given
        return tuple(build(one, given) for one in types)
    except (UserError, ValueError, TypeError, ImportError) as error:  # a dataclass rejects a value with its own message
        parser.error(str(error))


def _type_of(one: type | Deferred, helping: bool) -> type:
    if isinstance(one, Deferred):
        return one.defaults if helping else one.whole()
    return one


@dataclass(frozen=True)
class _ConfigFile:
    config: str | None = field(
        default=None,
        metadata={
            "metavar": "YAML",
            "help": "Flags and values as YAML: a file, or the name of a config of the package. The command line wins.",
        },
    )


def check_at_least(options: Any, least: float, *names: str) -> None:
    """UserError if one of these settings is given and below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: give {least:g} or more")


def check_known(options: Any, known: Sequence[str], *names: str) -> None:
    """UserError if one of these settings, a word or a list of words, is not in `known`."""
    for name in names:
        value = getattr(options, name)
        if unknown := [word for word in (value if isinstance(value, list) else [value]) if word not in known]:
            raise UserError(f"--{name} {' '.join(unknown)}: unknown; choose from {', '.join(known)}")


def check_url(options: Any, *names: str) -> None:
    """UserError if one of these settings is given and is no URL of an endpoint, or could contain a secret: it is
    printed, and recorded in run.json."""
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        if "@" in value or "?" in value:
            raise UserError(
                f"--{name}: the URL has a user, a password or a query, which may be secret; give the URL without it, "
                "and the key in the environment variable of --api_key_env"
            )
        if not _is_url(value):
            raise UserError(
                f"--{name} {value}: not a URL; it begins with http:// or https:// and usually ends with /v1"
            )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # ValueError for a port that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def check_between(options: Any, least: float, most: float, *names: str) -> None:
    """UserError if one of these settings is given and outside of `least` to `most`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} {value}: give {least:g} to {most:g}")


def find_config(given: str) -> Path:
    """The YAML file at this path, else the config of this name in the package."""
    if Path(given).is_file():
        return Path(given)
    names = {path.stem: path for path in sorted(CONFIGS.rglob("*.yaml"))}
    if given in names:
        return names[given]
    near = [Path(given).stem] if Path(given).stem in names else get_close_matches(Path(given).stem, names, 1)
    raise UsageError(
        f"--config {given}: no such file, and no config of the package has this name"
        + (f"; did you mean --config {near[0]}?" if near else "")
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {getattr(error, 'strerror', None) or 'not text in UTF-8'}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: contains a {type(values).__name__}, not a mapping of flags to values")
    return {str(key): value for key, value in values.items()}


def _flattened(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Sections flattened to names of flags: {renderer: {steps: 20}} becomes {renderer.steps: 20}."""
    sections = {name.partition(".")[0] for name in names if "." in name}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in sections and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def git_commit() -> str | None:
    """The commit of the source tree (`-dirty` appended where files differ), or None outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def command_line() -> list[str]:
    """The running command for records: a verb, or a program by its path in the source tree."""
    program = Path(sys.argv[0])
    inside = program.is_absolute() and program.is_relative_to(REPOSITORY)
    return [str(program.relative_to(REPOSITORY) if inside else program), *sys.argv[1:]]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which a result depends, including plugins."""
    found = {"python": platform.python_version(), **plugin_versions()}
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
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    with replacing(Path(path)) as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A temporary file next to `path` that takes its place at the end; nothing is left of it after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        make_readable(Path(temporary))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def make_readable(*paths: Path) -> None:
    """Set the mode of files according to the umask: mkstemp, and with it safetensors, makes them readable by the owner
    only."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in paths:
        path.chmod(0o666 & ~umask)


def write_run_json(out: str | Path, config: Any, **facts: Any) -> dict[str, Any]:
    """Write `out/run.json`: the full configuration, command, commit, versions and the other `facts`."""
    record = {
        "command": command_line(),
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
    """The record that `write_run_json` wrote in `out`, or None if there is none.

    Raises:
        UserError: if a newer version wrote it.
    """
    path = Path(out) / "run.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    check_schema("run", record, path)
    return record
