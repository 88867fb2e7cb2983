"""Additional answers of a model, one JSON line each, so that an interrupted run can resume.

kept = StoredAnswers(out / "faithfulness.jsonl")
records = kept.all(probes, ask, batch=8, about="hidden places")      # asks what the file does not hold
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vlm_detect.progress import progress


class Keyed(Protocol):
    @property
    def key(self) -> str: ...


T = TypeVar("T", bound=Keyed)


class StoredAnswers:
    """Records by key in one file; a line that was cut off is passed over, and what it was of is asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                self.records[row["key"]] = row["found"]
            except (ValueError, TypeError, KeyError):
                continue

    def all(
        self, wanted: Sequence[T], ask: Callable[[Sequence[T]], list[dict[str, Any]]], *, batch: int, about: str
    ) -> list[dict[str, Any]]:
        """The record of each of `wanted`, in order; `ask` gives those of a batch that are not there yet."""
        missing = list({one.key: one for one in wanted if one.key not in self.records}.values())
        with progress(desc=about, total=len(missing), unit="img") as bar:
            for start in range(0, len(missing), batch):
                some = missing[start : start + batch]
                self._add([one.key for one in some], ask(some))
                bar.update(len(some))
        return [self.records[one.key] for one in wanted]

    def _add(self, keys: Sequence[str], found: Sequence[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            if cut_off:
                file.write("\n")
            for key, one in zip(keys, found, strict=True):
                file.write(json.dumps({"key": key, "found": one}, ensure_ascii=False) + "\n")
                self.records[key] = one
