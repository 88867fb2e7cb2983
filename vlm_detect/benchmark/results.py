"""`results.jsonl`: one line per answered prompt, appended as answers arrive, so that an interrupted run can resume.

Each process writes its own file (the first `results.jsonl`, the others `results.part-N.jsonl`), and so does each shard
of an executor (`results.work/shards/*/results.jsonl`); `merge` combines them. A line that was truncated by an
interruption, or altered since, is dropped and its prompt asked again; a duplicate key is kept once.

Next to each file is a file with one checksum per line (`results.sha256`), written before the line. Without it, as in
earlier versions, every line counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from vlm_detect.jobs.shards import is_begun
from vlm_detect.records import Result

Key = tuple[str, str, str, int]
RESULTS = "results.jsonl"
WORK = "results.work"  # the folder of the shards until they are merged
_told: set[tuple[Path, int]] = set()  # warn about altered lines once
_FIELDS = {field.name for field in dataclasses.fields(Result)}


class ResultWriter:
    """Appends results to the file of one process; use as a context manager."""

    def __init__(self, out: Path, process: int = 0) -> None:
        self.path = out / (RESULTS if process == 0 else f"results.part-{process}.jsonl")
        self._file: TextIO | None = None
        self._checksums: TextIO | None = None

    def __enter__(self) -> ResultWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        # Lines of an earlier version have no checksums, and would not count if later lines had some.
        old = self.path.is_file() and not _checksum_file(self.path).is_file()
        self._file = self.path.open("a", encoding="utf-8")
        self._checksums = None if old else _checksum_file(self.path).open("a", encoding="utf-8")
        if cut_off:  # interrupted in the middle of a line: the next line must not be joined to it
            self._file.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if self._checksums is not None:
            self._checksums.close()

    def write(self, results: Iterable[Result]) -> None:
        assert self._file is not None, "use `with ResultWriter(...)`"
        rows = [result.to_json() for result in results]
        if self._checksums is not None:
            self._checksums.writelines(f"{_checksum(row)}\n" for row in rows)
            self._checksums.flush()
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _checksum(row: dict[str, Any]) -> str:
    """The checksum of a line's content, independent of key order and escapes."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:32]


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_results(path: str | Path) -> list[Result]:
    """The results of one file; lines that do not parse (after an interruption) are skipped.

    Altered lines are skipped too, with a warning.
    """
    path = Path(path)
    if not path.is_file():
        return []
    checksums = _checksum_file(path)
    known = set(checksums.read_text(encoding="utf-8").split()) if checksums.is_file() else None
    found = []
    altered = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                if known is not None and _checksum(row) not in known:
                    altered += 1
                    continue
                found.append(Result(**{name: value for name, value in row.items() if name in _FIELDS}))
            except (json.JSONDecodeError, TypeError, AttributeError):
                continue
    if altered and (path, altered) not in _told:
        _told.add((path, altered))
        print(f"{path}: {altered} lines were altered after they were written and are ignored", file=sys.stderr)
    return found


def merge(out: Path, order: Iterable[str] = ()) -> list[Result]:
    """Merge the files of all processes and shards into one `results.jsonl`, each key once, items in `order` (ids), and
    return it."""
    parts = [*sorted(out.glob("results.part-*.jsonl")), *sorted(out.glob(f"{WORK}/shards/*/{RESULTS}"))]
    by_key: dict[Key, Result] = {}
    for path in (out / RESULTS, *parts):
        for result in read_results(path):
            by_key.setdefault(result.key, result)
    place = {id_: i for i, id_ in enumerate(order)}
    results = sorted(by_key.values(), key=lambda r: (place.get(r.id, len(place)), r.scoring != "logprob"))
    if results or parts:
        temporary = out / f"{RESULTS}.tmp"
        temporary.write_text("".join(_line(result.to_json()) for result in results), encoding="utf-8")
        # Added to the existing ones: a run that is killed between the two renames loses nothing.
        checksums = _checksum_file(out / RESULTS)
        known = checksums.read_text(encoding="utf-8") if checksums.is_file() else ""
        new = "".join(f"{_checksum(result.to_json())}\n" for result in results)
        _write_whole(checksums, known + new)
        temporary.replace(out / RESULTS)
        _write_whole(checksums, new)
    for path in parts:
        path.unlink()
        _checksum_file(path).unlink(missing_ok=True)
    if is_begun(out / WORK):
        shutil.rmtree(out / WORK, ignore_errors=True)
    return results
