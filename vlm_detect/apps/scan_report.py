"""The page of a scan: counts, operating point, and a table of the images to sort, to filter, and to mark errors in.

    vlm-detect scan --model RUN photos/ --out report.html

One self-contained file. Without JavaScript it is a table; with it, rows are sorted and filtered, and verdicts that are
wrong can be marked and saved as a CSV, which `vlm-detect collect-errors` reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_detect.apps.limits import LIMITS, NOT_FOR
from vlm_detect.apps.operating_point import OperatingPoint
from vlm_detect.apps.scan_journal import Journal, Record
from vlm_detect.apps.scan_rows import LABELS, Scanned
from vlm_detect.infer.explanation import CheckedReason
from vlm_detect.pages.page import render_pieces, write_page
from vlm_detect.printable import printable
from vlm_detect.version import __version__

SHOWN_LABELS = (*LABELS, "unreadable")


@dataclass(frozen=True)
class ScanReport:
    """What a scan found, by `model` at an operating point; its records are read from the journal."""

    model: str
    point: OperatingPoint
    scanned: Scanned
    journal: Journal

    @property
    def counts(self) -> dict[str, int]:
        """The images of each label."""
        return {label: self.scanned.labels[label] for label in SHOWN_LABELS}

    def records(self) -> Iterator[Record]:
        """In the order of the arguments."""
        return self.journal.records(self.scanned.keys)

    def page_values(self) -> dict[str, Any]:
        """What both pages show: a report's and a case's."""
        ranked = self.journal.by_rank(self.scanned.keys)
        return {
            "model": self.model,
            "version": __version__,
            "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "counts": self.counts,
            "n": len(self.scanned.keys),
            "point": self.point,
            "has_maps": self.journal.has_maps,
            "missing": [printable(one) for one in self.scanned.missing],
            "rows": map(_shown, self.journal.records(ranked)),
            "not_for": NOT_FOR,
            "limits": LIMITS,
        }


def write_report(out: Path, report: ScanReport) -> None:
    """Write the page in one step."""
    n = len(report.scanned.keys)
    title = f"Verdicts on {n} image{'s' * (n != 1)}"
    write_page(out, render_pieces("scan.html.j2", title=title, **report.page_values()))


def _shown(record: Record) -> dict[str, Any]:
    """A row of the table; every text of others is made printable, so that no name reorders what stands around it."""
    row = record.row
    reasons = [CheckedReason.from_json(reason) for reason in row.reasons or ()]
    about = [f"{record.size[0]} × {record.size[1]}"] if record.size else []
    about += [f"sha256 {row.sha256[:12]}…"] if row.sha256 else []
    folder, slash, file = printable(row.path).rpartition("/")
    return {
        "path": printable(row.path),
        "folder": folder + slash,
        "file": file,
        "name": row.path,
        "sha256": row.sha256,
        "label": row.label,
        "p_fake": row.p_fake,
        "about": " · ".join(about),
        "notes": [printable(note) for note in (row.error, row.why_unsure, row.notes) if note],
        "contradictions": row.contradictions,
        "facts": [fact | {"text": printable(fact["text"])} for fact in record.facts],
        "reasons": [
            {"text": printable(reason.text), "status": reason.status, "note": reason.note, "supports": reason.supports}
            for reason in reasons
        ],
        "thumbnail": record.thumbnail,
        "evidence": record.evidence,
    }
