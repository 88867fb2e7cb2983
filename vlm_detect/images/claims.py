"""One statement in a file's metadata about its origin, and its meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Claim = Literal["generated", "captured", "edited"]
MAX_TEXT = 200

DIGITAL_SOURCE: Mapping[str, Claim] = {  # https://cv.iptc.org/newscodes/digitalsourcetype/
    "trainedAlgorithmicMedia": "generated",
    "algorithmicMedia": "generated",
    "compositeWithTrainedAlgorithmicMedia": "edited",
    "compositeSynthetic": "edited",
    "digitalCapture": "captured",
    "computationalCapture": "captured",
}
SOURCE_TYPE = re.compile(r"digitalsourcetype/(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """One statement of the file; `claim` is its meaning, None if it says nothing about real or generated."""

    source: Literal["C2PA", "PNG text", "EXIF", "XMP", "IPTC", "comment"]
    text: str
    claim: Claim | None = None


def one_line(text: str) -> str:
    """One printable line of at most `MAX_TEXT` characters: the file's text must not reach a terminal as control
    sequences."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_TEXT]).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
