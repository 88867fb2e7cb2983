"""Files of scan rows: a table to read, CSV, JSON Lines or JSON; written row by row, and read again to resume."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from vlm_detect.apps.scan_options import Format
from vlm_detect.apps.scan_rows import COLUMNS, LABELS, Judged, Row
from vlm_detect.apps.session import reason_lines
from vlm_detect.config import replacing, write_json
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.explanation import CheckedReason
from vlm_detect.printable import as_cell, from_cell, printable

AS_JSON = ("reasons", "witnesses")  # in a CSV
_FIRST_COLUMNS = COLUMNS[: COLUMNS.index("version") + 1]  # of the first version


class RowWriter:
    """Writes rows as a readable table, CSV, or JSON Lines."""

    def __init__(self, file: TextIO, form: Format, header: bool) -> None:
        self._file = file
        self._form = form
        if form == "csv" and header:
            csv.writer(file).writerow(COLUMNS)
        if form == "table":
            file.write(f"{'p_fake':>6}  {'label':<10}  image\n")

    def __call__(self, row: Row) -> None:
        match self._form:
            case "csv":
                cells = {name: value if name not in AS_JSON else _json(value) for name, value in asdict(row).items()}
                csv.writer(self._file).writerow(map(as_cell, cells.values()))
            case "jsonl":
                self._file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            case "table":
                notes = [row.error, f"the file says: {row.provenance}" if row.provenance else "", row.notes]
                notes += ["contradicts itself" if row.contradictions else "", row.why_unsure]
                p_fake = "" if row.p_fake is None else f"{row.p_fake:.3f}"
                shown = "; ".join([row.path, *filter(None, notes)])
                self._file.write(f"{p_fake:>6}  {row.label:<10}  {printable(shown)}\n")
                for line in reason_lines([CheckedReason.from_json(reason) for reason in row.reasons or ()]):
                    self._file.write(f"{'':20}{line}\n")


class RowFile:
    """The sink of rows that are written one by one: to `out`, CSV or JSON Lines, or to stdout in any of these forms.

    `out` may be a JSON document too, which is read by `earlier`, and written at the end by `rewrite`.
    """

    explains_flagged = False

    def __init__(self, out: Path | None, form: Format) -> None:
        self.place = out
        self._form = form
        self._stack = contextlib.ExitStack()

    def earlier(self, detector: Detector) -> list[Row]:
        """The rows of an earlier scan; a truncated last line is removed from the file."""
        out = self.place
        if out is None or not out.exists():
            return []
        try:
            data = out.read_bytes()
            whole = data if self._form == "json" else data[: data.rfind(b"\n") + 1]
            rows = _read(self._form, data, whole.decode("utf-8"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{out}: not a file of scan rows ({error}); give another --out") from error
        check_alike(rows, out, detector)
        if len(whole) < len(data):
            os.truncate(out, len(whole))
        if self._form == "csv" and whole and whole.decode("utf-8").splitlines()[0].split(",") != COLUMNS:
            self.rewrite(rows)
        return rows

    def __enter__(self) -> RowFile:
        file = self._stack.enter_context(appending(self.place)) if self.place else sys.stdout
        self._file = file
        self._write = RowWriter(file, self._form, header=self.place is None or file.tell() == 0)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, judged: Judged) -> None:
        self._write(judged.row)

    def flush(self) -> None:
        self._file.flush()

    def finish(self, before: Sequence[Row], new: Iterable[Row]) -> None:
        """Add `new` to a file that has the rows `before`."""
        if self._form == "json":
            self.rewrite([*before, *new])
            return
        with self:
            for row in new:
                self._write(row)

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Replace the file by one of these rows, in one step."""
        assert self.place is not None
        if self._form == "json":
            write_json(self.place, [asdict(row) for row in rows])
            return
        with replacing(self.place) as file:
            write = RowWriter(file, self._form, header=True)
            for row in rows:
                write(row)


def check_alike(rows: Sequence[Row], out: Path, detector: Detector, flag: str = "--out") -> None:
    """`UserError` where rows in `out` are of another model or operating point than that of `detector`."""
    if others := {row.model for row in rows} - {detector.name}:
        named = ", ".join(sorted(others))
        raise UserError(f"{out}: holds verdicts of {named}; give another {flag} for {detector.name}")
    calibration = detector.calibration
    asked = {"max_fpr": calibration.max_fpr, "views": detector.views, "threshold": calibration.threshold}
    for name, value in asked.items():
        judged = (row for row in rows if row.label in LABELS)
        found = {getattr(row, name) for row in judged if name != "threshold" or row.threshold is not None}
        if others := {str(one) for one in found} - {str(value)}:
            given = ", ".join(sorted(others))
            raise UserError(f"{out}: holds verdicts with --{name} {given}, not {value}; give another {flag}")


@contextlib.contextmanager
def appending(out: Path) -> Iterator[TextIO]:
    """`out` to append rows to; what prevents that is said in one line."""
    try:
        with out.open("a", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}; the rows written so far are kept; run again to continue"
        ) from error


def _read(form: Format, data: bytes, text: str) -> list[Row]:
    """The rows of a file's complete lines `text`; ValueError, TypeError or KeyError where `data` is something else."""
    if form == "json" and text.lstrip().startswith("["):
        return [Row(**values) for values in json.loads(text)]
    begin = ",".join(_FIRST_COLUMNS).encode() if form == "csv" else b'{"path": '
    if data[: len(begin)] != begin[: len(data)]:
        raise ValueError("its header differs")
    if form == "csv":
        return [_from_csv(values) for values in csv.DictReader(io.StringIO(text))]
    # Not splitlines, which also splits names at Unicode's other line separators. Version 0.1 wrote lines to .json too.
    return [Row(**json.loads(line)) for line in text.split("\n")[:-1]]


def _from_csv(values: dict[str, str]) -> Row:
    typed: dict[str, Any] = {name: from_cell(value) for name, value in values.items()}
    typed["p_fake"] = float(values["p_fake"]) if values["p_fake"] else None
    typed["calibrated"] = values["calibrated"] == "True"
    typed["contradictions"] = int(values["contradictions"])
    for name in AS_JSON:
        typed[name] = json.loads(values[name]) if values.get(name) else None
    typed["novelty_p"] = float(values["novelty_p"]) if values.get("novelty_p") else None
    typed["reliable"] = values.get("reliable", "True") == "True"
    typed["max_fpr"] = float(values["max_fpr"]) if values.get("max_fpr") else None
    typed["threshold"] = float(values["threshold"]) if values.get("threshold") else None
    typed["views"] = int(values.get("views") or 0)
    return Row(**typed)


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
