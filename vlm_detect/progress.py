"""One line on stderr every few seconds: how much is done, how fast, and how long the rest will take."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts work done by this process; silent where `quiet` (every process but the first)."""

    def __init__(self, total: int, unit: str, *, quiet: bool = False, every_s: float = 5.0) -> None:
        self.total, self.unit, self.quiet, self.every_s = total, unit, quiet, every_s
        self.done = 0
        self._start = self._shown = time.monotonic()

    def add(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if not self.quiet and (now - self._shown >= self.every_s or self.done >= self.total):
            self._shown = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)

    def line(self, elapsed_s: float) -> str:
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        left_s = round((self.total - self.done) / rate) if rate else 0
        left = f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
        return f"{self.done} of {self.total} {self.unit}, {rate:.1f} a second, {left} left"
