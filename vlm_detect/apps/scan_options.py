"""The flags of `vlm-detect scan`, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlm_detect.apps.options import check_max_fpr
from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError

Format = Literal["table", "csv", "jsonl"]
FORMS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}  # by the suffix of --out
MAX_VIEWS = 6  # copies of `images/views.py`
FAIL_ON = ("generated", "unsure", "unreadable")


def form_of(out: Path) -> Format:
    """The format for a file name; `UserError` for an unknown suffix."""
    suffix = out.suffix.lower()
    if suffix not in FORMS:
        raise UserError(
            f"--out {out}: rows are written as {', '.join(FORMS)}; give a file name with one of these suffixes"
        )
    return FORMS[suffix]


@dataclass(frozen=True)
class ScanOptions:
    images: list[str] = field(metadata={"positional": True, "help": "Files, folders, globs, lists of paths, datasets."})
    json: bool = field(default=False, metadata={"help": "JSON Lines on stdout."})
    csv: bool = field(default=False, metadata={"help": "CSV on stdout."})
    out: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "Write FILE.csv or FILE.jsonl; images that it already covers are not judged again.",
        },
    )
    explain: bool = field(
        default=False,
        metadata={"help": "The reasons too, each confirmed or contradicted by measurement, or neither."},
    )
    only_confirmed: bool = field(
        default=False, metadata={"help": "With --explain: only the sentences that a measurement confirms."}
    )
    batch_size: int = field(default=16, metadata={"help": "Images per batch."})
    max_fpr: float | None = field(
        default=None,
        metadata={
            "help": "Choose the threshold that promises this false-alarm rate, from the photos that the run was "
            "calibrated on. Default: the run's own threshold."
        },
    )
    views: int = field(
        default=0,
        metadata={
            "metavar": "N",
            "help": f"Judge N re-encoded copies too, at most {MAX_VIEWS}: JPEG, scale, crop. An image whose verdict "
            "depends on them is unsure.",
        },
    )
    fail_on: str = field(
        default="",
        metadata={"metavar": "LABELS", "help": "Exit with 1 if any image is one of: generated,unsure,unreadable."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size")
        if self.only_confirmed and not self.explain:
            raise UserError("--only_confirmed is about the reasons: give --explain too")
        check_at_least(self, 0, "views")
        if self.views > MAX_VIEWS:
            raise UserError(f"--views {self.views}: there are {MAX_VIEWS} copies to judge; give at most that many")
        check_max_fpr(self.max_fpr)
        if self.json + self.csv + (self.out is not None) > 1:
            raise UserError("--json, --csv and --out: give one of them")
        if self.out is not None:
            form_of(Path(self.out))
        if unknown := [label for label in self.labels if label not in FAIL_ON]:
            raise UserError(f"--fail_on {','.join(unknown)}: give any of {','.join(FAIL_ON)}")

    @property
    def labels(self) -> list[str]:
        """The labels of --fail_on."""
        return [label for label in self.fail_on.split(",") if label]
