"""Files of scan rows: a table to read, CSV, or JSON Lines; written row by row, and read again to resume."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from vlm_detect.apps.scan_options import Format
from vlm_detect.apps.scan_rows import COLUMNS, LABELS, Row
from vlm_detect.apps.session import reason_lines
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.explanation import CheckedReason
from vlm_detect.printable import as_cell, from_cell, printable

_AS_JSON = ("reasons", "witnesses")  # in a CSV
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
                cells = {name: value if name not in _AS_JSON else _json(value) for name, value in asdict(row).items()}
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


def earlier_rows(out: Path, form: Format, detector: Detector) -> list[Row]:
    """The rows of an earlier scan; a truncated last line is removed from the file."""
    if not out.exists():
        return []
    begin = b'{"path": ' if form == "jsonl" else ",".join(_FIRST_COLUMNS).encode()
    try:
        data = out.read_bytes()
        if data[: len(begin)] != begin[: len(data)]:
            raise ValueError("its header differs")
        whole = data[: data.rfind(b"\n") + 1]
        text = whole.decode("utf-8")
        if form == "jsonl":  # not splitlines, which also splits names at Unicode's other line separators
            rows = [Row(**json.loads(line)) for line in text.split("\n")[:-1]]
        else:
            rows = [_from_csv(values) for values in csv.DictReader(io.StringIO(text))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{out}: not a file of scan rows ({error}); give another --out") from error
    if others := {row.model for row in rows} - {detector.name}:
        raise UserError(f"{out}: holds verdicts of {', '.join(sorted(others))}; give another --out for {detector.name}")
    asked = {"max_fpr": detector.calibration.max_fpr, "views": detector.views}
    for name, value in asked.items():
        if others := {str(getattr(row, name)) for row in rows if row.label in LABELS} - {str(value)}:
            given = ", ".join(sorted(others))
            raise UserError(f"{out}: holds verdicts with --{name} {given}, not {value}; give another --out")
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    if form == "csv" and whole and text.splitlines()[0].split(",") != COLUMNS:
        _rewrite(out, rows)
    return rows


def _rewrite(out: Path, rows: Sequence[Row]) -> None:
    """The rows with the columns that an earlier version lacks."""
    partial_file = out.with_name(f".{out.name}.partial")
    with partial_file.open("w", encoding="utf-8", newline="") as file:
        write = RowWriter(file, "csv", header=True)
        for row in rows:
            write(row)
    partial_file.replace(out)


def _from_csv(values: dict[str, str]) -> Row:
    typed: dict[str, Any] = {name: from_cell(value) for name, value in values.items()}
    typed["p_fake"] = float(values["p_fake"]) if values["p_fake"] else None
    typed["calibrated"] = values["calibrated"] == "True"
    typed["contradictions"] = int(values["contradictions"])
    for name in _AS_JSON:
        typed[name] = json.loads(values[name]) if values.get(name) else None
    typed["novelty_p"] = float(values["novelty_p"]) if values.get("novelty_p") else None
    typed["reliable"] = values.get("reliable", "True") == "True"
    typed["max_fpr"] = float(values["max_fpr"]) if values.get("max_fpr") else None
    typed["views"] = int(values.get("views") or 0)
    return Row(**typed)


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
