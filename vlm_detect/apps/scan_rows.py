"""One row a scanned image: its verdict, what stands behind it, or why it could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from vlm_detect.infer.detector import Detector, Testimony, Verdict
from vlm_detect.infer.explanation import Explanation
from vlm_detect.version import __version__

LABELS = ("generated", "unsure", "real")  # of images that were judged


@dataclass(frozen=True)
class Row:
    """`label` is real, generated or unsure, or unreadable with the reason in `error`; `sha256` is of the file.

    `reasons` are those of `CheckedReason`, as a list of objects; None where none were asked for. `witnesses` holds the
    log-odds and the weight of each, where there are several; `threshold` is the p_fake above which images are called
    generated. Lists and objects are JSON in a CSV.
    Columns may be added at the end: files of earlier versions are read, and rewritten with the new columns.
    """

    path: str
    label: str
    p_fake: float | None
    calibrated: bool
    contradictions: int
    provenance: str
    error: str
    sha256: str
    model: str
    version: str
    notes: str = ""
    explanation: str = ""
    reasons: list[dict[str, Any]] | None = None
    reliable: bool = True
    why_unsure: str = ""
    max_fpr: float | None = None
    views: int = 0
    witnesses: dict[str, dict[str, float]] | None = None
    novelty_p: float | None = None
    threshold: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.sha256


COLUMNS = [column.name for column in fields(Row)]


@dataclass(frozen=True)
class Judged:
    """A row with what it was made from; `verdict` is None of a file that could not be read."""

    row: Row
    verdict: Verdict | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Scanned:
    """The count of each label, the keys of the rows in the order of the arguments, and why what is missing is."""

    labels: Counter[str]
    keys: list[tuple[str, str]]
    missing: list[str]


class Sink(Protocol):
    """What the rows of a scan go to; `place` is held while the scan writes to it, and holds the rows of an earlier one.

    With `explains_flagged` what is not called real gets its reasons whether asked for or not.
    """

    place: Path | None
    explains_flagged: bool

    def earlier(self, detector: Detector) -> list[Row]:
        """The rows that an earlier scan left; `UserError` where they are of another model or operating point."""

    def __enter__(self) -> Sink: ...

    def __exit__(self, *_: object) -> None: ...

    def write(self, judged: Judged) -> None: ...

    def flush(self) -> None: ...


def row_of(key: tuple[str, str], found: Verdict | str, explanation: Explanation | None, model: str) -> Row:
    """The row of the file `key` (path, sha256), by its verdict or by why it could not be read."""
    path, sha256 = key
    if isinstance(found, str):
        return Row(path, "unreadable", None, False, 0, "", " ".join(found.split()), sha256, model, __version__)
    claims = sorted({fact.claim for fact in found.provenance if fact.claim})
    return Row(
        path=path,
        label=found.label,
        p_fake=round(found.p_fake, 6),
        calibrated=found.calibrated,
        contradictions=len(found.contradictions_with(explanation) if explanation else found.contradictions),
        provenance=" ".join(claims),
        error="",
        sha256=sha256,
        model=model,
        version=found.version,
        notes="; ".join(found.notes),
        explanation=explanation.text if explanation else "",
        reasons=[reason.to_json() for reason in explanation.reasons] if explanation else None,
        reliable=found.reliable,
        why_unsure=found.why_unsure or "",
        max_fpr=found.max_fpr,
        views=found.views,
        witnesses=_several(found.witnesses),
        novelty_p=found.novelty_p,
        threshold=found.threshold,
    )


def _several(witnesses: Mapping[str, Testimony]) -> dict[str, dict[str, float]] | None:
    """None of a language model alone, whose log-odds `p_fake` says already."""
    return {name: said._asdict() for name, said in witnesses.items()} if len(witnesses) > 1 else None
