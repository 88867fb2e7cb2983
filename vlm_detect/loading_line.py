"""The first line of a program: that it loads its libraries, which takes seconds and longer on a cold disk.

    with loading_line(): ...            # "vlm-detect scan: loading libraries ..." on stderr, before the first import

The line is printed when the program first imports a library that loads slowly. A program that needs none of them, or
rejects its arguments before, answers at once and prints no such line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

SLOW = frozenset(
    ("torch", "transformers", "datasets", "accelerate", "peft", "diffusers", "sklearn", "matplotlib", "pyarrow")
)


class _Finder(MetaPathFinder):
    """Finds the slow libraries as Python does, with a loader that prints the line."""

    said = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in SLOW or self.said:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(self, spec.loader)
        return spec

    def say(self) -> None:
        if not self.said:
            self.said = True
            print(f"{Path(sys.argv[0]).name}: loading libraries ...", file=sys.stderr, flush=True)


class _Loader(SourceFileLoader):
    """Looking for a library, as `--help` and checks for extras do, is not loading it: only this prints the line."""

    def __init__(self, finder: _Finder, found: SourceFileLoader) -> None:
        super().__init__(found.name, found.path)
        self._finder = finder

    def exec_module(self, module: ModuleType) -> None:
        self._finder.say()
        super().exec_module(module)


@contextmanager
def loading_line() -> Iterator[None]:
    """Print the line once if a slow library is imported in this context; of several processes, the first prints."""
    if os.environ.get("RANK", "0") != "0" or not SLOW.isdisjoint(sys.modules):
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
