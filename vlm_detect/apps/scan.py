"""Verdicts on many images: files, folders, globs, lists of paths, datasets.

    vlm-detect scan --model runs/moondream_lora photos/ more/*.png
    vlm-detect scan --model runs/moondream_lora photos/ --out verdicts.csv     # run again: only what is new or changed
    vlm-detect scan --model runs/moondream_lora upload.jpg --fail_on generated --json
    vlm-detect scan --model runs/moondream_lora photos/ --explain --out verdicts.jsonl     # with checked reasons
    vlm-detect scan --model runs/moondream_lora photos/ --out report.html                  # a page to look through
    vlm-detect scan --model runs/moondream_lora photos/ --case case_7 --sign_key key.pem   # a case to hand over

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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vlm_detect.ahead import ahead
from vlm_detect.apps.cases import CaseOptions
from vlm_detect.apps.operating_point import OperatingPoint, worth
from vlm_detect.apps.scan_at_once import scan_at_once
from vlm_detect.apps.scan_files import RowFile
from vlm_detect.apps.scan_journal import PageOptions
from vlm_detect.apps.scan_options import Format, form_of
from vlm_detect.apps.scan_rows import LABELS, Judged, Row, Scanned, Sink, row_of
from vlm_detect.data.sources import FileSource, Source, SourcePhoto, open_source, report_skipped, spelled
from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.picture import Picture, decode_picture
from vlm_detect.locks import held
from vlm_detect.printable import printable
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration

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
    chosen_by: str = "",
    page: PageOptions | None = None,
    case: CaseOptions | None = None,
) -> Counter[str]:
    """Judge every image of `specs` and write the rows to `out`, or to stdout; returns the count of each label.

    With `explain` rows have reasons, with `only_confirmed` those alone that a measurement confirms. Rows already in
    `out`, by the same model at the same operating point and of unchanged files, are counted and not judged again; a
    page and a `case` are written at the end, and continue an interrupted scan. `chosen_by` is the flag that chose the
    operating point. A spec without images is reported on stderr at the end, and counted as "missing".
    """
    if out is not None:
        form = form_of(out)
    explained = _Explained(explain, only_confirmed)
    if form in ("json", "html") or case is not None:

        def judge(sink: Sink) -> Scanned:
            return judge_all(detector, specs, sink, batch_size, explained)

        point = OperatingPoint.of(detector, chosen_by)
        scanned = scan_at_once(detector, judge, point, form=form, out=out, page=page or PageOptions(), case=case)
    else:
        scanned = judge_all(detector, specs, RowFile(out, form), batch_size, explained)
    for missing in scanned.missing:
        print(f"error: {printable(missing)}", file=sys.stderr)
    return scanned.labels


def judge_all(detector: Detector, specs: Sequence[str], sink: Sink, batch_size: int, explained: _Explained) -> Scanned:
    """Judge every image of `specs` that has no row in `sink` yet, and write its row there as soon as it is judged."""
    labels: Counter[str] = Counter()
    seen: dict[tuple[str, str], None] = {}

    def count(row: Row) -> None:
        labels[row.label] += 1
        labels["contradictory"] += bool(row.contradictions)

    with contextlib.ExitStack() as stack:
        if sink.place is not None:
            stack.enter_context(held(sink.place, is_file=True))
        earlier = {row.key: row for row in sink.earlier(detector)}
        if explained.wanted and any(row.reasons is None and row.label != "unreadable" for row in earlier.values()):
            raise UserError(f"{sink.place}: holds verdicts without reasons; give another --out, or leave --explain out")
        explained = replace(explained, flagged=sink.explains_flagged)
        stack.enter_context(sink)
        opened = [_open(spec) for spec in specs]
        sources = [source for source in opened if not isinstance(source, UserError)]
        for spec, source in zip(specs, opened, strict=True):
            if not isinstance(source, UserError):
                report_skipped(spec, source.skipped)
        bar = stack.enter_context(progress(desc="scan", total=sum(map(len, sources)), unit="img"))
        pool = stack.enter_context(ThreadPoolExecutor(_DECODERS))

        def to_judge(batch: Sequence[SourcePhoto | Unread]) -> _Batch:
            fresh = {key: photo for photo in batch if (key := _key(photo)) not in seen}
            seen.update(dict.fromkeys(fresh))
            for key in fresh.keys() & earlier.keys():
                count(earlier[key])
            return _Batch(len(batch), {key: fresh[key] for key in fresh if key not in earlier})

        def decoded(batch: _Batch) -> _Batch:
            pictures = pool.map(partial(_decode, detector), batch.photos.values())
            return replace(batch, pictures=dict(zip(batch.photos, pictures, strict=True)))

        # The images of the next batch are decoded while one is judged.
        for batch in ahead(decoded, map(to_judge, _batches(sources, batch_size)), threads=1):
            for judged in _judge(detector, batch.pictures, explained):
                count(judged.row)
                sink.write(judged)
            sink.flush()
            bar.update(batch.size)
    missing = [spelled(str(source)) for source in opened if isinstance(source, UserError)]
    if missing:
        labels["missing"] = len(missing)
    return Scanned(labels, list(seen), missing)


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
class _Batch:
    """Images of `size` given ones that are to be judged, by their keys; decoded, or the reason why not."""

    size: int
    photos: Mapping[tuple[str, str], SourcePhoto | Unread]
    pictures: Mapping[tuple[str, str], Picture | str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Explained:
    """Which verdicts are explained: all, or the `flagged` that are not real; and whether by confirmed reasons alone."""

    wanted: bool
    only_confirmed: bool
    flagged: bool = False

    def of(self, verdict: Verdict) -> bool:
        return self.wanted or (self.flagged and verdict.label != "real")


def _judge(
    detector: Detector,
    pictures: Mapping[tuple[str, str], Picture | str],
    explained: _Explained,
) -> Iterator[Judged]:
    verdicts = detector.judge([picture for picture in pictures.values() if isinstance(picture, Picture)])
    chosen = [verdict for verdict in verdicts if explained.of(verdict)]
    written = iter(detector.explanations(chosen, only_confirmed=explained.only_confirmed) if chosen else ())
    explanations = [next(written) if explained.of(verdict) else None for verdict in verdicts]
    found = zip(verdicts, explanations, strict=True)
    for key, picture in pictures.items():
        verdict, explanation = next(found) if isinstance(picture, Picture) else (None, None)
        row = row_of(key, verdict or str(picture), explanation, detector.name)
        yield Judged(row, verdict, explanation)


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
