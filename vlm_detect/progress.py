"""Progress of long work: a bar on a terminal; in a log one line a minute, with the rate and the time left.

    for image in progress(images, "decode", unit="img"): ...
    with progress(desc="scan", total=1000, unit="img") as bar: bar.update(16)

In a log, work that takes less than a minute writes nothing; a single item that takes longer does not stop the lines.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

EVERY_S = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {remaining} left"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {rate_fmt}"


class _Lines:
    """A file to which tqdm writes its bar repeatedly; each state becomes a separate line on stderr."""

    def write(self, text: str) -> None:
        if words := text.split():
            print(*words, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class _Log(tqdm):
    """A line every `EVERY_S`, by a thread of its own, since a slow item calls no `update`; then one at the end."""

    def __init__(self, items: Iterable[Any] | None, **options: Any) -> None:
        self._closed = threading.Event()
        self._written = False
        super().__init__(items, file=_Lines(), delay=float("inf"), smoothing=0, **options)  # writes nothing by itself
        if not self.disable:
            arguments = (weakref.ref(self), self._closed, EVERY_S)
            threading.Thread(target=_write_lines, args=arguments, daemon=True, name="progress").start()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def close(self) -> None:
        self._closed.set()
        if self._written:
            self.refresh()
        super().close()


def _write_lines(bar: weakref.ref[_Log], closed: threading.Event, every_s: float) -> None:
    """Until the bar is closed, or gone: the reference is weak, since a failed loop closes no bar of its own."""
    while not closed.wait(every_s):
        if (shown := bar()) is None:
            return
        shown._written = True
        shown.refresh()
        del shown


def progress(
    items: Iterable[T] | None = None,
    desc: str = "",
    *,
    total: int | None = None,
    unit: str,
    initial: int = 0,
    quiet: bool = False,
) -> tqdm[T]:
    """A tqdm bar over `items`, or over `total` units counted by `update`; also a context manager.

    Args:
        initial: units done before this run, which count for the total and not for the rate.
        quiet: show nothing, as in every process but the first.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    options: dict[str, Any] = {"desc": desc, "total": total, "unit": unit, "initial": initial, "disable": quiet}
    options["position"] = 0  # a bar of another thread that is still open moves no line of this one
    if sys.stderr.isatty():
        return tqdm(items, leave=False, **options)
    return _Log(items, bar_format=_LINE if total else _LINE_WITHOUT_TOTAL, **options)
