"""What a module shows as progress."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest


def progress_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(description, items done) of each bar over items that `module` shows from now on."""
    shown: list[tuple[str, int]] = []

    def recorded(items: Iterable[Any], desc: str, *, unit: str) -> Iterable[Any]:
        done = 0
        for item in items:
            yield item
            done += 1
        shown.append((desc, done))

    monkeypatch.setattr(module, "progress", recorded)
    return shown
