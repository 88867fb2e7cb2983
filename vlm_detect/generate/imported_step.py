"""Import third-party texts about a dataset's images as reasons: matched by image name, split into sentences.

    plan = plan_imported(members, "data/fakeclue", config)
    run_shards(ImportedShard("data/fakeclue", config, plan, work / "imported"), plan, work / "imported", launch)

A text is split into sentences; sentences that only state the verdict or describe the content are dropped; the others
get their kind by keywords (`taxonomy.py`). A text whose verdict contradicts its image's label is rejected completely.
In pairs the judge is asked about each sentence for its image and for the other one, as with a teacher's sentences; an
image without a counterpart is judged alone if a judge is given, and otherwise its sentences are kept as unchecked.
Every rejected sentence or text is a row of the rejects.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from vlm_detect.config import file_sha256
from vlm_detect.data.members import Member, Members, names_of, open_members
from vlm_detect.data.texts import Note, read_texts
from vlm_detect.errors import UserError
from vlm_detect.generate.judging import Claimed
from vlm_detect.generate.measure_step import SENTENCE_FEATURES
from vlm_detect.generate.reason_options import TeacherConfig, TextsConfig
from vlm_detect.generate.sightings import Sighting, Unusable, check_sighting
from vlm_detect.generate.taxonomy import kind_of, reason_in, speaks_for
from vlm_detect.generate.teacher_step import judging_of
from vlm_detect.jobs.shards import Plan, counted, write_shard
from vlm_detect.questions.read import parse_explanation, sentences
from vlm_detect.records import REASON_KINDS, ReasonKind, Reject, TextsLayout

STAGE = "imported"


def plan_imported(members: Members, dataset: str, config: TextsConfig, judging: TeacherConfig) -> Plan:
    """Raises UserError if the file cannot be read, matches no image, or is about pairs without a judge."""
    assert config.texts is not None
    if len(members.columns) > 1 and judging.judge is None:
        raise UserError(
            f"{dataset} contains pairs, where a judge has to deny each sentence for the other image: give a --judge"
        )
    found = matched(dataset, config.texts, config.texts_layout)
    if not found.notes:
        example = found.strangers[0].id if found.strangers else "nothing"
        raise UserError(
            f"{config.texts}: none of its records is about an image of {dataset} (the first is about {example}); "
            "images are matched by path, by their file's SHA-256, or by a pair's id"
        )
    path = Path(config.texts)
    settings = {
        "dataset": dataset,
        **asdict(config),
        "texts_sha256": file_sha256(path) if path.is_file() else None,
        "judge": judging.judge,
        "judge_endpoint": judging.judge_endpoint,
        "min_margin": judging.min_margin,
    }
    return Plan(STAGE, members.rows, judging.teacher_shard_size, members.fingerprint, settings)


@dataclass(frozen=True)
class ImportedShard:
    """The imported reasons of one shard's rows; called in any process."""

    dataset: str
    config: TextsConfig
    judging: TeacherConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        assert self.config.texts is not None
        found = matched(self.dataset, self.config.texts, self.config.texts_layout)
        rejects = list(found.strangers) if shard == 0 else []
        claims: list[Claimed] = []
        members = open_members(self.dataset)
        for number, split, row in counted(members.numbered(*self.plan.span(shard))):
            item = members.of_row(number, split, row)
            for note in found.notes.get(number, ()):
                try:
                    claims += [(item, sighting) for sighting in _sightings(item, note, rejects)]
                except UserError as error:
                    rejects.append(Reject(item[0].id, STAGE, "unreadable", str(error)))
        judging = judging_of(replace(self.judging, teacher=None, teacher_endpoint=None), "imported")
        write_shard(self.folder, shard, judging.rows(claims, rejects), SENTENCE_FEATURES, rejects)


@dataclass(frozen=True)
class Matched:
    """The notes of rows by row number; and the texts that match no row or are unreadable."""

    notes: Mapping[int, Sequence[Note]]
    strangers: Sequence[Reject]


@functools.lru_cache(maxsize=2)
def matched(dataset: str, texts: str, layout: TextsLayout) -> Matched:
    """Cached per process. A path is matched by its longest suffix that is unique to one row."""
    rows = _RowNames(open_members(dataset))
    notes: dict[int, list[Note]] = {}
    strangers: list[Reject] = []
    for name, found in read_texts(layout, Path(texts)):
        if isinstance(found, ValueError):
            strangers.append(Reject(name, STAGE, "bad_record", str(found)))
            continue
        try:
            notes.setdefault(rows.find(name), []).extend(found)
        except Unusable as fault:
            strangers.append(Reject(name, STAGE, fault.reason, fault.detail))
    return Matched(notes, strangers)


class _RowNames:
    """Rows by identifier: full names, and file names for paths of another machine."""

    def __init__(self, members: Members) -> None:
        self._exact: dict[str, int] = {}
        self._by_file: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        number = 0
        for rows in members.splits.values():
            known = [column for column in ("pair_id", "id", "source") if column in rows.column_names]
            for row in rows.select_columns(known) if known else [{}] * len(rows):
                for name in names_of(row):
                    self._exact.setdefault(name, number)
                    parts = _parts(name)
                    self._by_file.setdefault(parts[-1] if parts else "", []).append((parts, number))
                number += 1

    def find(self, name: str) -> int:
        """Raises `Unusable` if no row or several rows match the name."""
        if name in self._exact:
            return self._exact[name]
        parts = _parts(name)
        near = [(_alike(parts, other), row) for other, row in self._by_file.get(parts[-1] if parts else "", [])]
        longest = max((length for length, _ in near), default=0)
        rows = {row for length, row in near if length == longest and length}
        if len(rows) == 1:
            return rows.pop()
        raise Unusable(
            "no_such_image" if not rows else "several_such_images", f"{len(rows)} rows match" if rows else ""
        )


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "."))


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of equal trailing parts."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _sightings(item: Sequence[Member], note: Note, rejects: list[Reject]) -> Iterator[Sighting]:
    """The sentences of a note that may be reasons; the others become rejects."""
    number = 1 if note.about == "twin" and len(item) == 2 else 0
    member = item[number]
    verdict = parse_explanation(note.text)
    if verdict is not None and verdict != (member.label == "generated"):
        rejects.append(Reject(member.id, STAGE, "contradicts_label", note.text[:240]))
        return
    size = member.image.size
    box = _part_of(note, size)
    for sentence in sentences(note.text):
        text = reason_in(sentence)
        try:
            if parse_explanation(text) is not None:
                raise Unusable("states_label", text[:240])
            kind = _kind(note, text)
            if len(text.split()) < 3 or len(text) > 240:
                raise Unusable("no_sentence", f"{kind}: {text[:240]}")
            is_reason = text != sentence or note.kind is not None or note.box is not None  # by its place in the text
            if not is_reason and not speaks_for(text, member.label):
                raise Unusable("says_nothing", f"{kind}: {text}")
            sighting = Sighting(number, kind, text if text[-1] in ".!?" else f"{text}.", box)
            check_sighting(sighting, member.label)
        except Unusable as fault:
            rejects.append(Reject(member.id, STAGE, fault.reason, fault.detail))
        else:
            yield sighting


def _kind(note: Note, text: str) -> ReasonKind:
    kind = note.kind or kind_of(text)
    if kind is None:
        raise Unusable("no_kind", text[:240])
    if kind not in REASON_KINDS:
        raise Unusable("unknown_kind", f"{kind}: {text[:200]}")
    return kind


def _part_of(note: Note, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """A note's box as fractions of its image, clipped; None if it is outside."""
    if note.box is None:
        return None
    x0, x1 = (min(max(value / size[0], 0.0), 1.0) for value in (note.box[0], note.box[2]))
    y0, y1 = (min(max(value / size[1], 0.0), 1.0) for value in (note.box[1], note.box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
