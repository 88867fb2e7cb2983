"""A case: what a scan found on some images, with all that a reviewer needs to judge it, in files that can be verified.

    vlm-detect scan --model RUN photos/ --case case_7 --sign_key key.pem
    vlm-detect verify case_7 --public_key key.pub

    case.json      images with hashes, verdicts, reasons and claims; the run, its calibration and its dataset with
                   hashes and versions; operating point, baselines, limits
    case.html      the same to read, with pictures and a line for the reviewer
    case.sha256    checksums of both; `sha256sum -c case.sha256` reads it
    case.sig       with a key: the Ed25519 signature of case.json, which holds the checksum of case.html

The folder appears in one step when all is written. The images are not copied: the case has their hashes.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_detect.apps.case_files import JSON, PAGE, SIGNATURE, SUMS, checksums
from vlm_detect.apps.limits import LIMITS, NOT_FOR
from vlm_detect.apps.scan_journal import Record
from vlm_detect.apps.scan_report import ScanReport
from vlm_detect.apps.signatures import public_text, sign
from vlm_detect.apps.traces import Trace, trace_run
from vlm_detect.config import command_line, file_sha256, git_commit, versions
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.pages.page import render_pieces, write_page
from vlm_detect.schema import with_schema
from vlm_detect.version import __version__

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

UNSIGNED = "not signed: the checksums show that nothing changed by accident, not who wrote the case"


@dataclass(frozen=True)
class CaseOptions:
    """`key` signs the case; `reviewer` is a name, or empty for a line to fill in."""

    folder: Path
    key: Ed25519PrivateKey | None = None
    reviewer: str = ""


def check_new(folder: Path) -> None:
    """`UserError` where a case cannot be written to `folder`: it is never written over another one."""
    if not folder.name:
        raise UserError(f"--case {folder}: give a new folder by its name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--case {folder}: is there already and not empty; give a new folder")


def write_case(options: CaseOptions, detector: Detector, report: ScanReport) -> None:
    """Write the case to its folder in one step."""
    folder = options.folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted scan
    try:
        partial.mkdir(parents=True)
        _write_files(partial, options, detector, report)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"--case {folder}: {error.strerror}; the verdicts are kept, run again to continue") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(folder: Path, options: CaseOptions, detector: Detector, report: ScanReport) -> None:
    trace = trace_run(detector)
    signed_by = public_text(options.key) if options.key else None
    values = report.page_values() | {
        "title": f"Case {options.folder.name}",
        "trace": trace,
        "command": " ".join(command_line()),
        "reviewer": options.reviewer,
        "signed_by": signed_by,
        "unsigned": UNSIGNED,
    }
    write_page(folder / PAGE, render_pieces("case.html.j2", **values))
    record = case_record(options, trace, report, signed_by) | {"files": {PAGE: file_sha256(folder / PAGE)}}
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    (folder / JSON).write_text(text, encoding="utf-8")
    (folder / SUMS).write_text(checksums(folder), encoding="utf-8")
    if options.key is not None:
        (folder / SIGNATURE).write_bytes(sign(options.key, (folder / JSON).read_bytes()))


def case_record(options: CaseOptions, trace: Trace, report: ScanReport, signed_by: str | None) -> dict[str, Any]:
    """The content of case.json, but for the checksums of the other files."""
    return with_schema(
        "case",
        {
            "case": options.folder.name,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "version": __version__,
            "command": command_line(),
            "commit": git_commit(),
            "versions": versions(),
            "reviewer": {"name": options.reviewer, "date": "", "decision": ""},
            "signature": {"algorithm": "Ed25519", "public_key": signed_by} if signed_by else None,
            **trace.to_json(),
            "operating_point": report.point.to_json(),
            "counts": report.counts,
            "missing": report.scanned.missing,
            "images": [_image(record) for record in report.records()],
            "may_not_be_used_for": NOT_FOR,
            "limits": LIMITS,
        },
    )


def _image(record: Record) -> dict[str, Any]:
    return asdict(record.row) | {"size": record.size, "claims": record.facts}
