"""Registries of named objects, ours and those of other packages: question kinds, edits, model families and so on.

    EDITS: Registry[Edit] = Registry("edit", ["vlm_detect.images.edit_operations"])
    EDITS["blur"]                      # loads our modules; `list(EDITS)` has the names of plugins too

A decorator registers ours when their module is imported. Another package names the module that does so in an entry
point of the group `vlm_detect`; the entry point's name is KIND.NAME:

    [project.entry-points.vlm_detect]
    "edit.posterise" = "my_package.edits"

A plugin is imported only when its object is looked up; listing names imports none. `docs/extending.md` has a recipe for
each kind.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from vlm_detect.errors import UserError

GROUP = "vlm_detect"
KINDS = ("family", "generator", "cnn", "edit", "importer", "vqa_importer", "question", "metric", "measure", "section")

T = TypeVar("T")


class Registry(Generic[T]):
    """The objects of one kind by name: first ours, in the order of their modules, then those of plugins.

    Args:
        kind: one of `KINDS`.
        modules: modules of this package that register ours when they are imported.
    """

    def __init__(self, kind: str, modules: Sequence[str]) -> None:
        assert kind in KINDS, kind
        self.kind = kind
        self._modules = modules
        self._loaded = False
        self._things: dict[str, T] = {}
        self._makers: dict[str, Any] = {}
        self._own: list[str] = []

    def add(self, name: str, thing: T, maker: Any = None) -> None:
        """Register `thing`; `maker` is the decorated function or class, if it is another object.

        Raises:
            UserError: if the name is taken. The same function defined again, as in a notebook, replaces it.
        """
        maker = thing if maker is None else maker
        if name in self._makers and _place(self._makers[name]) != _place(maker):
            raise UserError(
                f"{self.noun} {name!r} of {_place(maker)}: {_place(self._makers[name])} has that name; take another"
            )
        self._things[name], self._makers[name] = thing, maker

    @property
    def noun(self) -> str:
        return self.kind.replace("_", " ")

    @property
    def own(self) -> tuple[str, ...]:
        """The names of this package's objects, without plugins."""
        self._load_own()
        return tuple(self._own)

    def __getitem__(self, name: str) -> T:
        """Raises UserError for an unknown name, and for a plugin that cannot be loaded."""
        self._load_own()
        if name not in self._things:
            self._load_plugin(name)
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def __iter__(self) -> Iterator[str]:
        self._load_own()
        return iter(dict.fromkeys([*self._things, *(name for name in sorted(self._entry_points()))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)  # not by list(), which calls len()

    def values(self) -> list[T]:
        """All objects; loads every plugin of this kind."""
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, T]]:
        return [(name, self[name]) for name in self]

    def check(self, *names: str, flag: str = "") -> None:
        """UserError for an unknown name; `flag` is the user's flag."""
        known = list(self)
        for name in names:
            if name not in known:
                near = get_close_matches(name, known, 1)
                said = f"{flag} {name}: no such {self.noun}" if flag else f"no {self.noun} is called {name!r}"
                hint = f"did you mean {near[0]}? Known are" if near else "known are"
                raise UserError(f"{said}; {hint} {', '.join(known)}")

    def _load_own(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # before the imports, which may look something up themselves
        before = set(self._things)
        try:
            for module in self._modules:
                importlib.import_module(module)
        except BaseException:
            self._loaded = False
            raise
        # In the order of the modules, whichever was imported first.
        place = {module: i for i, module in enumerate(self._modules)}
        self._things = dict(
            sorted(self._things.items(), key=lambda one: place.get(self._makers[one[0]].__module__, len(place)))
        )
        self._own = [name for name in self._things if name not in before or _is_ours(self._makers[name])]

    def _load_plugin(self, name: str) -> None:
        points = self._entry_points().get(name, [])
        if not points:
            self.check(name)
        if len(points) > 1:
            raise UserError(f"{self.noun} {name!r}: {' and '.join(map(_said, points))} both have it; uninstall one")
        (point,) = points
        try:
            point.load()
        except (Exception, SystemExit) as error:  # a plugin's module may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{_said(point)} cannot be loaded for the {self.noun} {name!r} ({reason}); fix or uninstall it"
            ) from error
        if name not in self._things:
            raise UserError(f"{_said(point)} registers no {self.noun} called {name!r} when it is imported")

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in installed():
            kind, _, name = point.name.partition(".")
            if kind == self.kind and name:
                found.setdefault(name, []).append(point)
        return found


def registering(registry: Registry[T], name: str) -> Callable[[T], T]:
    """A decorator that registers an object unchanged."""

    def register(thing: T) -> T:
        registry.add(name, thing)
        return thing

    return register


def installed() -> tuple[EntryPoint, ...]:
    """The entry points of every installed plugin, without importing them."""
    return _installed(tuple(sys.path))


def plugin_versions() -> dict[str, str]:
    """{distribution: version} of the plugins."""
    return {point.dist.name: point.dist.version for point in installed() if point.dist}


def mistaken() -> list[str]:
    """One line for each entry point with an unknown kind, which would never be looked up."""
    kinds = ", ".join(KINDS)
    unknown = [point for point in installed() if point.name.partition(".")[0] not in KINDS or "." not in point.name]
    return [f"{_said(point)}: its name is not KIND.NAME with a KIND of {kinds}" for point in unknown]


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Cached by `path`, which is sys.path."""
    return tuple(entry_points(group=GROUP))


def _said(point: EntryPoint) -> str:
    return f"plugin {point.dist.name if point.dist else '(unknown)'} ({point.name} = {point.value})"


def _place(maker: Any) -> str:
    kind = maker if hasattr(maker, "__qualname__") else type(maker)
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_ours(maker: Any) -> bool:
    return _place(maker).startswith(f"{__package__}.")
