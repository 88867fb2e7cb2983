"""The flags of `vlm-detect scan`, without heavy imports."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlm_detect.apps.options import check_max_fpr
from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError

Format = Literal["table", "csv", "jsonl", "json", "html"]
# By the suffix of --out.
FORMS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".json": "json", ".html": "html"}
MAX_VIEWS = 6  # copies of `images/views.py`
SHARD_SIZE = 1024  # images; of any batch size that is a power of two, batches are those of a scan into one file
FAIL_ON = ("generated", "unsure", "unreadable")


def form_of(out: Path) -> Format:
    """The format for a file name; `UserError` for an unknown suffix."""
    suffix = out.suffix.lower()
    if suffix not in FORMS:
        raise UserError(
            f"--out {out}: rows are written as {', '.join(FORMS)}; give a file name with one of these suffixes, or a "
            "folder, without a suffix or with a / at its end"
        )
    return FORMS[suffix]


@dataclass(frozen=True)
class ScanOptions:
    images: list[str] = field(
        metadata={
            "positional": True,
            "help": "Files, folders, globs, lists of paths, parquet files, tars, datasets; and URLs of them: s3://, "
            "gs://, hf://.",
        }
    )
    json: bool = field(default=False, metadata={"help": "JSON Lines on stdout."})
    csv: bool = field(default=False, metadata={"help": "CSV on stdout."})
    out: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "Write FILE.csv, FILE.jsonl or FILE.json, where images that it already covers are not judged "
            "again; or FILE.html, a page with pictures, and reasons and evidence maps of what is not called real; or "
            "a folder of parquet files, in shards for many workers.",
        },
    )
    shard_size: int = field(default=SHARD_SIZE, metadata={"help": "Images per shard of an --out folder."})
    image_column: str = field(
        default="", metadata={"metavar": "NAME", "help": "Image column of parquet files. Default: recognized."}
    )
    explain: bool = field(
        default=False,
        metadata={"help": "The reasons too, each confirmed or contradicted by measurement, or neither."},
    )
    only_confirmed: bool = field(
        default=False, metadata={"help": "Of the reasons only the sentences that a measurement confirms."}
    )
    batch_size: int = field(default=16, metadata={"help": "Images per batch."})
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Call images generated above this p_fake, and the others real: no unsure band, no guaranteed rate. "
            "It comes before --max_fpr."
        },
    )
    max_fpr: float | None = field(
        default=None,
        metadata={
            "help": "Choose the threshold that guarantees this false-alarm rate, from the photos that the run was "
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
    no_thumbnails: bool = field(
        default=False, metadata={"help": "No pictures in the page of --out FILE.html or --case, only names."}
    )
    max_maps: int = field(
        default=100,
        metadata={
            "help": "Evidence maps in a page: of the first N images that are not called real. One map asks about up "
            "to 81 hidden regions of its image."
        },
    )
    case: str | None = field(
        default=None,
        metadata={
            "metavar": "DIR",
            "help": "Write a case file to this new folder: case.json, case.html and their checksums.",
        },
    )
    sign_key: str | None = field(
        default=None,
        metadata={"metavar": "FILE", "help": "Sign the case with this Ed25519 private key (PEM or OpenSSH)."},
    )
    reviewer: str = field(
        default="", metadata={"metavar": "NAME", "help": "Who reviews the case. Default: a line to fill in."}
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size", "shard_size")
        check_at_least(self, 0, "views", "max_maps")
        if self.views > MAX_VIEWS:
            raise UserError(f"--views {self.views}: there are {MAX_VIEWS} copies to judge; give at most that many")
        check_max_fpr(self.max_fpr)
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(f"--threshold {self.threshold}: give a probability above 0 and below 1, for example 0.8")
        if self.json + self.csv + (self.out is not None) > 1:
            raise UserError("--json, --csv and --out: give one of them")
        if self.in_shards and self.case is not None:
            raise UserError("--case and a folder of shards: a case is of images to look at, give --out FILE or none")
        form = form_of(Path(self.out)) if self.out is not None and not self.in_shards else None
        has_page = form == "html" or self.case is not None
        if self.only_confirmed and not (self.explain or has_page):
            raise UserError("--only_confirmed is about the reasons: give --explain too")
        if self.no_thumbnails and not has_page:
            raise UserError("--no_thumbnails is about a page: give --out FILE.html or --case DIR")
        for name in ("sign_key", "reviewer"):
            if getattr(self, name) and self.case is None:
                raise UserError(f"--{name} is about a case: give --case DIR too")
        if unknown := [label for label in self.labels if label not in FAIL_ON]:
            raise UserError(f"--fail_on {','.join(unknown)}: give any of {','.join(FAIL_ON)}")

    @property
    def in_shards(self) -> bool:
        """Whether `out` is a folder."""
        if self.out is None or Path(self.out).suffix.lower() in FORMS:
            return False
        return self.out.endswith(("/", os.sep)) or not Path(self.out).suffix or Path(self.out).is_dir()

    @property
    def labels(self) -> list[str]:
        """The labels of --fail_on."""
        return [label for label in self.fail_on.split(",") if label]

    @property
    def form(self) -> Format:
        """Of the rows."""
        if self.out is not None:
            return form_of(Path(self.out))
        return "jsonl" if self.json else "csv" if self.csv else "table"


@dataclass(frozen=True)
class VerifyOptions:
    case: str = field(metadata={"positional": True, "metavar": "DIR", "help": "The folder of a case."})
    public_key: str | None = field(
        default=None,
        metadata={"metavar": "FILE", "help": "The signer's Ed25519 public key (PEM or OpenSSH)."},
    )
    images: str | None = field(
        default=None,
        metadata={
            "metavar": "FOLDER",
            "help": "Where the images are; all of them have to be there. Default: where the scan found them.",
        },
    )


@dataclass(frozen=True)
class CollectErrorsOptions:
    out: str = field(metadata={"metavar": "FOLDER", "help": "Where the images are collected, in real/ and fake/."})
    marks: list[str] = field(
        default_factory=list,
        metadata={"positional": True, "help": "Files of marks, saved from the page of a report or a case."},
    )
    real: list[str] = field(default_factory=list, metadata={"metavar": "IMAGES", "help": "Images that are real."})
    generated: list[str] = field(
        default_factory=list, metadata={"metavar": "IMAGES", "help": "Images that are generated."}
    )

    def __post_init__(self) -> None:
        if not (self.marks or self.real or self.generated):
            raise UserError("nothing is marked: give files of marks, --real IMAGES or --generated IMAGES")
