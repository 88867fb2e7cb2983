"""Verdicts on many images: files, folders, globs, lists of paths, datasets.

    vlm-detect scan --model runs/moondream_lora photos/ more/*.png
    vlm-detect scan --model runs/moondream_lora photos/ --out verdicts.csv     # run again: only what is new or changed
    vlm-detect scan --model runs/moondream_lora upload.jpg --fail_on generated --json
    vlm-detect scan --model runs/moondream_lora photos/ --explain --out verdicts.jsonl     # with checked reasons

One row per image, in the order of the arguments, written as soon as its batch is judged. An image that cannot be read
also gets a row, with the reason in `error`; `notes` lists what is unusual about a file. A path that matches nothing is
an error, reported after the other images are judged.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from vlm_detect.apps.scan_files import RowWriter, earlier_rows
from vlm_detect.apps.scan_options import Format, form_of
from vlm_detect.apps.scan_rows import LABELS, Row, row_of
from vlm_detect.data.sources import FileSource, Source, SourcePhoto, open_source, report_skipped, spelled
from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.infer.detector import Detector, Picture, decode_picture
from vlm_detect.infer.explanation import Explanation
from vlm_detect.locks import held
from vlm_detect.printable import printable
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.promise import percent

_DECODERS = 4


def scan(
    detector: Detector,
    specs: Sequence[str],
    *,
    form: Format = "table",
    out: Path | None = None,
    batch_size: int = 16,
    explain: bool = False,
    only_confirmed: bool = False,
) -> Counter[str]:
    """Judge every image of `specs` and write the rows to `out`, or to stdout; returns the count of each label.

    With `explain` rows have reasons, with `only_confirmed` those alone that a measurement confirms. Rows already in
    `out`, by the same model and of unchanged files, are counted and not judged again. A spec without images is reported
    on stderr at the end, and counted as "missing".
    """
    if out is not None:
        form = form_of(out)
    labels: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()

    def count(row: Row) -> None:
        labels[row.label] += 1
        labels["contradictory"] += bool(row.contradictions)

    with contextlib.ExitStack() as stack:
        if out is not None:
            stack.enter_context(held(out, is_file=True))
        earlier = {row.key: row for row in earlier_rows(out, form, detector)} if out else {}
        if explain and any(row.reasons is None and row.label != "unreadable" for row in earlier.values()):
            raise UserError(f"{out}: holds verdicts without reasons; give another --out, or leave --explain out")
        explained = _Explained(explain, only_confirmed)
        file = stack.enter_context(_appending(out)) if out else sys.stdout
        write = RowWriter(file, form, header=not out or file.tell() == 0)
        opened = [_open(spec) for spec in specs]
        sources = [source for source in opened if not isinstance(source, UserError)]
        for spec, source in zip(specs, opened, strict=True):
            if not isinstance(source, UserError):
                report_skipped(spec, source.skipped)
        bar = stack.enter_context(progress(desc="scan", total=sum(map(len, sources)), unit="img"))
        pool = stack.enter_context(ThreadPoolExecutor(_DECODERS))
        for batch in _batches(sources, batch_size):
            fresh = {key: photo for photo in batch if (key := _key(photo)) not in seen}
            seen.update(fresh)
            for key in fresh.keys() & earlier.keys():
                count(earlier[key])
            for row in _judge(detector, {key: fresh[key] for key in fresh if key not in earlier}, pool, explained):
                count(row)
                write(row)
            file.flush()
            bar.update(len(batch))
    for missing in (source for source in opened if isinstance(source, UserError)):
        print(f"error: {printable(spelled(str(missing)))}", file=sys.stderr)
        labels["missing"] += 1
    return labels


@contextlib.contextmanager
def _appending(out: Path) -> Iterator[TextIO]:
    try:
        with out.open("a", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror}; the rows written so far are kept; run again to continue"
        ) from error


@dataclass(frozen=True)
class Unread:
    """A file that could not be read."""

    path: str
    reason: str


def _open(spec: str) -> Source | UserError:
    path = Path(spec)
    try:
        # A single file is an image whatever its suffix, unless it is a list of paths.
        if path.is_file() and path.suffix.lower() != ".txt":
            return FileSource([path], named=spec)
        return open_source(spec)
    except UserError as error:
        return error


def _photos(sources: Iterable[Source]) -> Iterator[SourcePhoto | Unread]:
    for source in sources:
        for photo in source.read(0, len(source)):
            yield photo if isinstance(photo, SourcePhoto) else Unread(photo[0], str(photo[1]))


def _batches(sources: Iterable[Source], size: int) -> Iterator[list[SourcePhoto | Unread]]:
    batch: list[SourcePhoto | Unread] = []
    for photo in _photos(sources):
        batch.append(photo)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _key(photo: SourcePhoto | Unread) -> tuple[str, str]:
    if isinstance(photo, Unread):
        return photo.path, ""
    return photo.path_or_id, hashlib.sha256(photo.data).hexdigest()


@dataclass(frozen=True)
class _Explained:
    """Whether verdicts are explained, and whether by confirmed reasons alone."""

    wanted: bool
    only_confirmed: bool


def _judge(
    detector: Detector,
    photos: Mapping[tuple[str, str], SourcePhoto | Unread],
    pool: ThreadPoolExecutor,
    explained: _Explained,
) -> Iterator[Row]:
    decoded = list(pool.map(partial(_decode, detector), photos.values()))
    verdicts = detector.judge([picture for picture in decoded if isinstance(picture, Picture)])
    explanations: Sequence[Explanation | None] = [None] * len(verdicts)
    if explained.wanted:
        explanations = detector.explanations(verdicts, only_confirmed=explained.only_confirmed)
    found = zip(verdicts, explanations, strict=True)
    for key, picture in zip(photos, decoded, strict=True):
        verdict, explanation = next(found) if isinstance(picture, Picture) else (picture, None)
        yield row_of(key, verdict, explanation, detector.name)


def _decode(detector: Detector, photo: SourcePhoto | Unread) -> Picture | str:
    """The picture, or why the model cannot read it."""
    if isinstance(photo, Unread):
        return photo.reason
    try:
        picture = decode_picture(photo.data)
    except ImageRejected as error:
        return str(error)
    return f"shape: {refusal}" if (refusal := detector.refusal(picture)) else picture


def summary(labels: Counter[str], calibration: Calibration | None = None) -> str:
    """One line on how many images got which verdict, and on what that is worth."""
    counts = [f"{labels[label]} {label}" for label in (*LABELS, "unreadable") if labels[label]]
    images = sum(labels[label] for label in (*LABELS, "unreadable"))
    against = f"; the model contradicts itself on {labels['contradictory']}" if labels["contradictory"] else ""
    return f"{images} images: {', '.join(counts) or 'none'}{against}{worth(calibration) if calibration else ''}"


def worth(calibration: Calibration) -> str:
    """What a run's calibration promises, and whether it means anything; empty where neither is to be said."""
    promised = ""
    if calibration.max_fpr is not None:
        promised = (
            f"; at most {percent(calibration.max_fpr)} of photos like the {calibration.n_real} of its calibration are "
            f"called generated ({percent(calibration.confidence or 0)} confidence)"
        )
    doubt = f"; its calibration is not reliable: {calibration.doubt}" if not calibration.reliable else ""
    return promised + doubt
