"""Scans whose result is written at their end, in one step: a JSON document, a page, a case.

Until then rows lie in a journal, from which an interrupted scan continues; it is removed when all is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlm_detect.apps.cases import CaseOptions, check_new, write_case
from vlm_detect.apps.operating_point import OperatingPoint
from vlm_detect.apps.scan_files import RowFile
from vlm_detect.apps.scan_journal import Journal, PageOptions
from vlm_detect.apps.scan_options import Format
from vlm_detect.apps.scan_report import ScanReport, write_report
from vlm_detect.apps.scan_rows import Scanned, Sink
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.locks import held


def scan_at_once(
    detector: Detector,
    judge: Callable[[Sink], Scanned],
    point: OperatingPoint,
    *,
    form: Format,
    out: Path | None,
    page: PageOptions,
    case: CaseOptions | None,
) -> Scanned:
    """Let `judge` fill a journal, then write what was asked for: rows in `form` to `out` or stdout, and the case.

    Raises:
        UserError: before anything is judged, where `out` or the case cannot be written.
    """
    if out is not None and out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file name")
    if case is not None:
        check_new(case.folder)
    place, flag = (case.folder, "--case") if case else (out, "--out")
    assert place is not None  # of a form that is written at the end
    rows = None if form == "html" else RowFile(out, form)
    with held(place, flag=flag, is_file=True):
        before = rows.earlier(detector) if rows else []
        if form == "html" or case is not None:
            journal = Journal(place, page, flag=flag)
        else:
            journal = Journal(place, flag=flag, before=before)
        scanned = judge(journal)
        report = ScanReport(detector.name, point, scanned, journal)
        if case is not None:
            write_case(case, detector, report)
        if rows is not None:
            known = {row.key for row in before}
            new = [key for key in scanned.keys if key not in known]
            rows.finish(before, (record.row for record in journal.records(new)))
        elif out is not None:
            write_report(out, report)
        journal.remove()
    return scanned
