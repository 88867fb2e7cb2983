"""Dataclasses as a command line: the flag of each field, and its value from a string.

    given = parse_flags(flags_of([RenderConfig, Launch]), ["--steps", "20"])      # {"steps": 20}
    build(RenderConfig, given)

A field's metadata may contain `help`, `choices`, `aliases`, `metavar`, and `positional: True` for an argument without a
flag. A field whose type is a dataclass is a section: its fields are `--renderer.steps` and so on. This module
imports nothing heavy, so a program lists its flags in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from enum import Enum
from inspect import cleandoc
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from vlm_detect.errors import UsageError
from vlm_detect.version import __version__

_TRUE, _FALSE = {"true", "yes", "t", "y", "1"}, {"false", "no", "f", "n", "0"}
_NO_DEFAULT = (None, "", MISSING)
_MOST_SUGGESTIONS = 3


@dataclass(frozen=True)
class Flag:
    """One flag or positional argument; `name` has dots where its field is in a section."""

    name: str
    hint: Any
    default: Any = MISSING  # MISSING: no default, the flag is required
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""

    @property
    def positional(self) -> bool:
        return bool(self.metadata.get("positional"))

    @property
    def many(self) -> bool:
        return get_origin(_without_none(self.hint)) in (list, tuple)

    @property
    def is_bool(self) -> bool:
        return _without_none(self.hint) is bool

    @property
    def choices(self) -> list[Any]:
        """The possible values; empty if they are not limited."""
        return list(self.metadata.get("choices", ())) or _choices(self.value_type)

    @property
    def value_type(self) -> Any:
        """The type of one value."""
        hint = _without_none(self.hint)
        return get_args(hint)[0] if self.many else hint

    @property
    def help(self) -> str:
        """The field's help with its default, unless there is none or the help states it."""
        text = self.metadata.get("help", "")
        if self.default in _NO_DEFAULT or self.default is False or "default" in text.lower():
            return text
        default = self.default() if callable(self.default) else self.default
        default = getattr(default, "value", default)  # of an enum
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown})" if shown else text


@dataclass(frozen=True)
class Deferred:
    """A dataclass that is completed by a library's flags, which `--help` lists without importing the library."""

    defaults: type  # its fields and their defaults win over those of `whole`
    whole: Callable[[], type]  # imports the library; a dataclass with all fields of `defaults`
    listed: Callable[[], Iterable[Flag]]
    replaced: Mapping[str, str] = dataclasses.field(default_factory=dict)  # old flags and their replacements


class Parser(ArgumentParser):
    """An ArgumentParser whose errors are one line: a usage of a hundred and more flags would bury it."""

    def error(self, message: str) -> NoReturn:
        said = " ".join(message.removeprefix("argument ").split())
        print(f"error: {said} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def flags_of(cls: type, prefix: str = "", group: str | None = None) -> Iterator[Flag]:
    """The flags of a dataclass, sections included."""
    title = _title(cls) if group is None else group
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = _without_none(hints[field.name])
        if dataclasses.is_dataclass(hint):
            yield from flags_of(hint, f"{prefix}{field.name}.", f"{prefix}{field.name}: {_title(hint)}")  # type: ignore[arg-type]
            continue
        default = field.default if field.default is not MISSING else field.default_factory
        yield Flag(prefix + field.name, hints[field.name], default, field.metadata, title)


def make_parser(flags: Sequence[Flag], doc: str | None, *, help_only: bool) -> Parser:
    """The parser of `flags`; with `help_only` it knows the positional arguments too, to list them."""
    positional = " ".join(_metavar(flag) for flag in flags if flag.positional)
    parser = Parser(
        usage=f"%(prog)s [--FLAG VALUE ...] {positional}".strip(),
        description=doc and cleandoc(doc),  # argparse formats a description only for %(prog)s
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vlm-detect {__version__}")
    groups: dict[str, Any] = {"": parser}
    for flag in flags:
        group = groups.get(flag.group) or groups.setdefault(flag.group, parser.add_argument_group(flag.group))
        options: dict[str, Any] = {"help": flag.help.replace("%", "%%"), "default": SUPPRESS}
        options |= {key: flag.metadata[key] for key in ("metavar",) if key in flag.metadata}
        if flag.positional:
            if help_only:
                group.add_argument(flag.name, **options | {"metavar": _metavar(flag), "nargs": "?"})
            continue
        if flag.is_bool:
            options |= {"type": _as_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
        else:
            options |= {"type": _converter(flag.value_type, flag.choices), "nargs": "*" if flag.many else None}
            options |= {key: flag.metadata[key] for key in ("nargs", "const", "action") if key in flag.metadata}
            options.setdefault("metavar", _metavar(flag))
        group.add_argument(f"--{flag.name}", *flag.metadata.get("aliases", ()), dest=flag.name, **options)
        if flag.is_bool and flag.default is True:
            group.add_argument(
                f"--no_{flag.name}", action="store_false", dest=flag.name, default=SUPPRESS, help=f"No --{flag.name}."
            )
    return parser


def parse_flags(
    parser: Parser, flags: Sequence[Flag], argv: Sequence[str], replaced: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The values in `argv`, by the flags' names; exits with status 2 on an unknown flag, or a missing or excess value.

    `replaced` has the replacements of flags that users may know from elsewhere.
    """
    by_name = {flag.name: flag for flag in flags}
    flagged, behind = _normalised(argv, by_name)
    namespace, rest = parser.parse_known_args(flagged)
    if unknown := [arg.partition("=")[0][2:] for arg in rest if arg.startswith("--")]:
        parser.error("; ".join(f"--{name}: {_no_such(name, by_name, replaced or {}, '--')}" for name in unknown))
    if unknown := [arg for arg in rest if arg.startswith("-") and len(arg) > 1]:
        parser.error(f"{' '.join(unknown)}: no such flag")
    try:
        return vars(namespace) | _positional_values([flag for flag in flags if flag.positional], [*rest, *behind])
    except (ArgumentTypeError, ValueError) as error:
        parser.error(str(error))


def check_keys(
    keys: Sequence[str], flags: Sequence[Flag], where: str, replaced: Mapping[str, str] | None = None
) -> None:
    """UsageError if one of the `keys` of a file is no flag."""
    names = {flag.name: flag for flag in flags}
    if unknown := [key for key in keys if key not in names]:
        said = "; ".join(f"{key}: {_no_such(key, names, replaced or {}, '')}" for key in unknown)
        raise UsageError(f"{where}: unknown keys {', '.join(unknown)} ({said})")


def build(cls: type, given: Mapping[str, Any], prefix: str = "") -> Any:
    """The dataclass `cls` with the values in `given`; UsageError if one without a default is missing."""
    hints = get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, _without_none(hints[field.name])
        if dataclasses.is_dataclass(hint):
            if any(key.startswith(f"{name}.") for key in given):
                values[field.name] = build(hint, given, f"{name}.")  # type: ignore[arg-type]
        elif name in given:
            values[field.name] = tuple(given[name]) if get_origin(hint) is tuple else given[name]
        elif field.init and field.default is MISSING and field.default_factory is MISSING:
            shown = field.metadata.get("metavar", name.upper()) if field.metadata.get("positional") else f"--{name}"
            help_text = str(field.metadata.get("help", "")).rstrip(".")
            raise UsageError(f"{shown} is missing" + (f": {help_text}" if help_text else ""))
    return cls(**values)


def defaults_of(cls: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields."""
    fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(cls)
    return {field.name: field.default for field in fields if field.default is not MISSING} | {
        field.name: field.default_factory() for field in fields if field.default_factory is not MISSING
    }


def as_flags(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A YAML mapping as a command line, so that its values are checked and converted like flags."""
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{prefix}{name}", *map(_as_text, value)]
        elif value is not None:
            flags.append(f"--{prefix}{name}={_as_text(value)}")
    return flags


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _title(cls: type) -> str:
    """The first line of the docstring of a class or its base; not the one that `dataclass` generates."""
    docs = [one.__doc__ or "" for one in cls.__mro__[:-1] if not (one.__doc__ or "").startswith(f"{one.__name__}(")]
    return next((doc.partition("\n")[0].rstrip(".") for doc in docs if doc), "")


def _metavar(flag: Flag) -> str:
    numbers = {int: "N", float: "X"}
    name = flag.name.rpartition(".")[2] if flag.positional else flag.name.rpartition("_")[2]
    shown = str(flag.metadata.get("metavar") or numbers.get(flag.value_type) or name.upper())
    if flag.choices:
        shown = "{" + ",".join(map(str, flag.choices)) + "}"
    if not flag.positional:
        return shown
    shown = f"{shown} ..." if flag.many else shown
    return shown if flag.default is MISSING else f"[{shown}]"


def _normalised(argv: Sequence[str], flags: Mapping[str, Flag]) -> tuple[list[str], list[str]]:
    """Flags with underscores, and `--flag=True` for a bare boolean: a positional argument may follow it.

    The second list contains the arguments after `--`, all of them positional.
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    found, i = [], 0
    while i < end:
        arg = argv[i]
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            name = name.replace("-", "_")
            if name in flags and flags[name].is_bool and not equals:
                spoken = i + 1 < end and argv[i + 1].lower() in _TRUE | _FALSE
                equals, value = "=", argv[i + 1] if spoken else "True"
                i += spoken
            arg = f"--{name}{equals}{value}"
        found.append(arg)
        i += 1
    return found, list(argv[end + 1 :])


def _positional_values(flags: Sequence[Flag], given: Sequence[str]) -> dict[str, Any]:
    """One string each, and the remaining ones for the one that takes many."""
    values: dict[str, Any] = {}
    left = list(given)
    for place, flag in enumerate(flags):
        if not left:
            break
        take = len(left) - (len(flags) - place - 1) if flag.many else 1
        convert = _converter(flag.value_type, flag.choices)
        taken, left = [convert(text) for text in left[:take]], left[take:]
        values[flag.name] = taken if flag.many else taken[0]
    if left:
        raise ValueError(f"{' '.join(left)}: no argument is left for it")
    return values


def _no_such(name: str, names: Mapping[str, Any], replaced: Mapping[str, str], dashes: str) -> str:
    if name in replaced:
        return replaced[name]
    words = set(name.split("_"))
    near = sorted((known for known in names if words <= set(known.split("_"))), key=len)
    near = near[:_MOST_SUGGESTIONS] or get_close_matches(name, names, 1)
    return f"no such {'flag' if dashes else 'key'}" + (
        f"; did you mean {' or '.join(dashes + known for known in near)}?" if near else ""
    )


def _without_none(hint: Any) -> Any:
    """X of `X | None`; any other type as it is."""
    if get_origin(hint) in (Union, types.UnionType):
        some = [one for one in get_args(hint) if one is not types.NoneType]
        return some[0] if len(some) == 1 else Union[tuple(some)]  # noqa: UP007
    return hint


def _choices(hint: Any) -> list[Any]:
    """Of a Literal, an Enum, or a union that has an Enum."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for one in get_args(hint) if isinstance(one, type) and (found := _choices(one))), [])
    return [one.value for one in hint] if isinstance(hint, type) and issubclass(hint, Enum) else []


def _converter(hint: Any, choices: Sequence[Any]) -> Callable[[str], Any]:
    """A function from a string to a value of the type `hint`."""
    if choices:
        return functools.partial(_as_choice, {str(choice): choice for choice in choices})
    if get_origin(hint) in (Union, types.UnionType):
        return str if str in get_args(hint) else _converter(get_args(hint)[0], ())
    if hint is bool:
        return _as_bool
    if get_origin(hint) is dict:
        return _as_json
    return hint


def _as_choice(choices: Mapping[str, Any], text: str) -> Any:
    if text not in choices:
        raise ArgumentTypeError(f"{text}: choose from {', '.join(choices)}")
    return choices[text]


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: not JSON ({error})") from error


def _as_bool(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ArgumentTypeError(f"{text}: give True or False")
