"""`results.jsonl`: one line an answered prompt, appended as the answers come, so that an interrupted run goes on.

Several processes write a file each (the first `results.jsonl`, the others `results.part-N.jsonl`); `merge` makes one
file of them. A line that was cut off by an interruption is dropped and its prompt asked again; a key that occurs
twice is kept once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from vlm_detect.records import Result

Key = tuple[str, str, str, int]
RESULTS = "results.jsonl"
_FIELDS = {field.name for field in dataclasses.fields(Result)}


class ResultWriter:
    """Appends results to the file of one process; use as a context manager."""

    def __init__(self, out: Path, process: int = 0) -> None:
        self.path = out / (RESULTS if process == 0 else f"results.part-{process}.jsonl")
        self._file: TextIO | None = None

    def __enter__(self) -> ResultWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = self.path.open("a", encoding="utf-8")
        if cut_off:  # an interruption in the middle of a line: what follows must not be joined to it
            self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, results: Iterable[Result]) -> None:
        assert self._file is not None, "use `with ResultWriter(...)`"
        self._file.writelines(json.dumps(result.to_json(), ensure_ascii=False) + "\n" for result in results)
        self._file.flush()


def read_results(path: str | Path) -> list[Result]:
    """The results of one file; lines that do not parse, as an interruption leaves them, are passed over."""
    path = Path(path)
    if not path.is_file():
        return []
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                found.append(Result(**{name: value for name, value in row.items() if name in _FIELDS}))
            except (json.JSONDecodeError, TypeError, AttributeError):
                continue
    return found


def merge(out: Path, order: Iterable[str] = ()) -> list[Result]:
    """Make one `results.jsonl` of what all processes wrote, each key once, items in `order` (ids), and return it."""
    parts = sorted(out.glob("results.part-*.jsonl"))
    by_key: dict[Key, Result] = {}
    for path in (out / RESULTS, *parts):
        for result in read_results(path):
            by_key.setdefault(result.key, result)
    place = {id_: i for i, id_ in enumerate(order)}
    results = sorted(by_key.values(), key=lambda r: (place.get(r.id, len(place)), r.scoring != "logprob"))
    if results or parts:
        temporary = out / f"{RESULTS}.tmp"
        temporary.write_text(
            "".join(json.dumps(result.to_json(), ensure_ascii=False) + "\n" for result in results), encoding="utf-8"
        )
        temporary.replace(out / RESULTS)
    for path in parts:
        path.unlink()
    return results
