"""What a page shows of each image, as JSON Lines next to it during a scan; an interrupted one continues from it.

    journal = Journal(Path("report.html"), PageOptions(thumbnails=True, max_maps=100))
    with journal: journal.write(judged)
    for record in journal.records(keys): record.row, record.facts, record.thumbnail, record.evidence
    journal.remove()                                   # once the page is written

Pictures are data URLs of bounded size. An evidence map is made of what is not called real, at most `max_maps` of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_detect.apps.scan_files import appending, check_alike
from vlm_detect.apps.scan_rows import LABELS, Judged, Row
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.pages.page import photo

_SIDE = 160  # pixels of a picture's longer side; smaller images are enlarged for their map alone


@dataclass(frozen=True)
class PageOptions:
    """How a page is made: with pictures or without, and of how many images with an evidence map."""

    thumbnails: bool = True
    max_maps: int = 100


@dataclass(frozen=True)
class Record:
    """`facts` are what the file says of itself: {source, text, claim}; `size` is (width, height) in pixels.

    `thumbnail` and `evidence` are data URLs, or None.
    """

    row: Row
    facts: list[dict[str, Any]]
    size: list[int] | None = None
    thumbnail: str | None = None
    evidence: str | None = None

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        values = json.loads(line)
        return cls(**{**values, "row": Row(**values["row"])})


class Journal:
    """The sink of a scan whose result is written at its end; `flag` names the option that chose its `place`.

    `page` is None where no page is made. The rows `before` are known from elsewhere and not judged again.
    """

    def __init__(
        self, place: Path, page: PageOptions | None = None, *, flag: str = "--out", before: Sequence[Row] = ()
    ) -> None:
        self.place: Path | None = place
        self.path = place.with_name(f".{place.name}.rows.jsonl")
        self.explains_flagged = page is not None
        self.has_maps = page is not None and page.thumbnails and page.max_maps > 0
        self._flag = flag
        self._before = before
        self._thumbnails = page is not None and page.thumbnails
        self._maps_left = page.max_maps if page is not None and page.thumbnails else 0
        self._at: dict[tuple[str, str], tuple[tuple[int, float], int]] = {}  # rank and beginning, in bytes, of a record
        self._stack = contextlib.ExitStack()

    def earlier(self, detector: Detector) -> list[Row]:
        """The rows that an interrupted scan left; a truncated last line is removed from the file."""
        if not self.path.exists():
            return list(self._before)
        rows, end = [], 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    record = Record.from_line(line)
                    rows.append(record.row)
                    self._at[record.row.key] = _rank(record.row), end
                    self._maps_left -= record.evidence is not None
                    end += len(line)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path}: not of an interrupted scan ({error}); remove it") from error
        check_alike(rows, self.path, detector, self._flag)
        os.truncate(self.path, end)
        return [*self._before, *rows]

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._stack.enter_context(appending(self.path))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, judged: Judged) -> None:
        line = json.dumps(asdict(self._record(judged)), ensure_ascii=False) + "\n"
        self._at[judged.row.key] = _rank(judged.row), self._file.tell()
        self._file.write(line)

    def flush(self) -> None:
        self._file.flush()

    def by_rank(self, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Keys in the order of a page: by label, generated first, and by p_fake from the top down."""
        return sorted(keys, key=lambda key: self._at[key][0])

    def records(self, keys: Sequence[tuple[str, str]]) -> Iterator[Record]:
        """The records of these rows, in their order, read one by one."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self._at[key][1])
                yield Record.from_line(file.readline())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _record(self, judged: Judged) -> Record:
        verdict = judged.verdict
        if verdict is None:
            return Record(judged.row, [])
        facts = [asdict(fact) for fact in verdict.provenance]
        size = list(verdict.image.size)
        if not self._thumbnails:
            return Record(judged.row, facts, size)
        shown = photo(verdict.image, judged.row.path, max_side=_SIDE).uri
        return Record(judged.row, facts, size, shown, self._evidence(verdict))

    def _evidence(self, verdict: Verdict) -> str | None:
        if verdict.label == "real" or self._maps_left <= 0:
            return None
        self._maps_left -= 1
        found = verdict.map().overlay(_shown_size(verdict.image))
        return photo(found, "evidence", max_side=_SIDE).uri


def _rank(row: Row) -> tuple[int, float]:
    return (*LABELS, row.label).index(row.label), -(row.p_fake or 0)


def _shown_size(image: Image.Image) -> Image.Image:
    """Scaled to the side of a picture, so that the map's colours blend at the size at which they are seen."""
    scale = _SIDE / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
