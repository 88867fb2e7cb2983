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
import csv
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from vlm_detect.apps.options import Format, form_of
from vlm_detect.apps.session import reason_lines
from vlm_detect.data.sources import FileSource, Source, SourcePhoto, open_source, spelled, tell_skipped
from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.infer.detector import Detector, Picture, Testimony, Verdict, decode_picture
from vlm_detect.infer.explanation import CheckedReason, Explanation
from vlm_detect.locks import held
from vlm_detect.printable import as_cell, from_cell, printable
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.promise import percent
from vlm_detect.version import __version__

_DECODERS = 4
LABELS = ("generated", "unsure", "real")  # of images that were judged


@dataclass(frozen=True)
class Row:
    """`label` is real, generated or unsure, or unreadable with the reason in `error`; `sha256` is of the file.

    `reasons` are those of `CheckedReason`, as a list of objects; None where none were asked for. `witnesses` holds the
    log-odds and the weight of each, where there are several. Lists and objects are JSON in a CSV.
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

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.sha256


COLUMNS = [column.name for column in fields(Row)]
_AS_JSON = ("reasons", "witnesses")  # in a CSV
_FIRST_COLUMNS = COLUMNS[: COLUMNS.index("version") + 1]  # of the first version


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
        earlier = {row.key: row for row in _earlier_rows(out, form, detector)} if out else {}
        if explain and any(row.reasons is None and row.label != "unreadable" for row in earlier.values()):
            raise UserError(f"{out}: holds verdicts without reasons; give another --out, or leave --explain out")
        explained = _Explained(explain, only_confirmed)
        file = stack.enter_context(_appending(out)) if out else sys.stdout
        write = _Writer(file, form, header=not out or file.tell() == 0)
        opened = [_open(spec) for spec in specs]
        sources = [source for source in opened if not isinstance(source, UserError)]
        for spec, source in zip(specs, opened, strict=True):
            if not isinstance(source, UserError):
                tell_skipped(spec, source.skipped)
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
        yield _row(key, verdict, explanation, detector.name)


def _decode(detector: Detector, photo: SourcePhoto | Unread) -> Picture | str:
    """The picture, or why the model cannot read it."""
    if isinstance(photo, Unread):
        return photo.reason
    try:
        picture = decode_picture(photo.data)
    except ImageRejected as error:
        return str(error)
    return f"shape: {refusal}" if (refusal := detector.refusal(picture)) else picture


def _row(key: tuple[str, str], found: Verdict | str, explanation: Explanation | None, model: str) -> Row:
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
    )


def _several(witnesses: Mapping[str, Testimony]) -> dict[str, dict[str, float]] | None:
    """None of a language model alone, whose log-odds `p_fake` says already."""
    return {name: said._asdict() for name, said in witnesses.items()} if len(witnesses) > 1 else None


class _Writer:
    """Writes rows as a readable table, CSV, or JSON Lines."""

    def __init__(self, file: TextIO, form: Format, header: bool) -> None:
        self._file = file
        self._form = form
        if form == "csv" and header:
            csv.writer(file).writerow(COLUMNS)
        if form == "table":
            file.write(f"{'p_fake':>6}  {'label':<10}  image\n")

    def __call__(self, row: Row) -> None:
        match self._form:
            case "csv":
                cells = {name: value if name not in _AS_JSON else _json(value) for name, value in asdict(row).items()}
                csv.writer(self._file).writerow(map(as_cell, cells.values()))
            case "jsonl":
                self._file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            case "table":
                notes = [row.error, f"the file says: {row.provenance}" if row.provenance else "", row.notes]
                notes += ["contradicts itself" if row.contradictions else "", row.why_unsure]
                p_fake = "" if row.p_fake is None else f"{row.p_fake:.3f}"
                shown = "; ".join([row.path, *filter(None, notes)])
                self._file.write(f"{p_fake:>6}  {row.label:<10}  {printable(shown)}\n")
                for line in reason_lines([CheckedReason.from_json(reason) for reason in row.reasons or ()]):
                    self._file.write(f"{'':20}{line}\n")


def _earlier_rows(out: Path, form: Format, detector: Detector) -> list[Row]:
    """The rows of an earlier scan; a truncated last line is removed from the file."""
    if not out.exists():
        return []
    begin = b'{"path": ' if form == "jsonl" else ",".join(_FIRST_COLUMNS).encode()
    try:
        data = out.read_bytes()
        if data[: len(begin)] != begin[: len(data)]:
            raise ValueError("its header differs")
        whole = data[: data.rfind(b"\n") + 1]
        text = whole.decode("utf-8")
        if form == "jsonl":  # not splitlines, which also splits names at Unicode's other line separators
            rows = [Row(**json.loads(line)) for line in text.split("\n")[:-1]]
        else:
            rows = [_from_csv(values) for values in csv.DictReader(io.StringIO(text))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{out}: not a file of scan rows ({error}); give another --out") from error
    if others := {row.model for row in rows} - {detector.name}:
        raise UserError(f"{out}: holds verdicts of {', '.join(sorted(others))}; give another --out for {detector.name}")
    asked = {"max_fpr": detector.calibration.max_fpr, "views": detector.views}
    for name, value in asked.items():
        if others := {str(getattr(row, name)) for row in rows if row.label in LABELS} - {str(value)}:
            given = ", ".join(sorted(others))
            raise UserError(f"{out}: holds verdicts with --{name} {given}, not {value}; give another --out")
    if len(whole) < len(data):
        os.truncate(out, len(whole))
    if form == "csv" and whole and text.splitlines()[0].split(",") != COLUMNS:
        _write_anew(out, rows)
    return rows


def _write_anew(out: Path, rows: Sequence[Row]) -> None:
    """The rows with the columns that an earlier version lacks."""
    partial_file = out.with_name(f".{out.name}.partial")
    with partial_file.open("w", encoding="utf-8", newline="") as file:
        write = _Writer(file, "csv", header=True)
        for row in rows:
            write(row)
    partial_file.replace(out)


def _from_csv(values: dict[str, str]) -> Row:
    typed: dict[str, Any] = {name: from_cell(value) for name, value in values.items()}
    typed["p_fake"] = float(values["p_fake"]) if values["p_fake"] else None
    typed["calibrated"] = values["calibrated"] == "True"
    typed["contradictions"] = int(values["contradictions"])
    for name in _AS_JSON:
        typed[name] = json.loads(values[name]) if values.get(name) else None
    typed["novelty_p"] = float(values["novelty_p"]) if values.get("novelty_p") else None
    typed["reliable"] = values.get("reliable", "True") == "True"
    typed["max_fpr"] = float(values["max_fpr"]) if values.get("max_fpr") else None
    typed["views"] = int(values.get("views") or 0)
    return Row(**typed)


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


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
