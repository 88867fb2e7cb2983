"""The files of a case, and the checksums of them."""

from __future__ import annotations

from pathlib import Path

from vlm_detect.config import file_sha256

JSON, PAGE, SUMS, SIGNATURE = "case.json", "case.html", "case.sha256", "case.sig"


def checksums(folder: Path) -> str:
    """The content of case.sha256, in the form of `sha256sum`."""
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in (PAGE, JSON))
