"""Write a dataset with the found reasons (`pack_reasons`), and its card.

An image dataset gains the column `reasons`, a pair dataset `image_reasons` and `twin_reasons`. Existing reasons of
other sources than the requested ones are kept. Everything else is copied: rows, splits, card and rejects.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, List

from vlm_detect.columns import REASON_COLUMNS, REASON_FEATURES
from vlm_detect.data.members import Member, Members, open_members
from vlm_detect.errors import UserError
from vlm_detect.generate.card import reasons_section
from vlm_detect.generate.dataset_files import Packed, SplitWriter, finish_folder, written_whole
from vlm_detect.generate.edit_reasons import edit_reasons
from vlm_detect.generate.reasons import ReasonsPlan
from vlm_detect.generate.teacher_step import judge_of, teacher_of
from vlm_detect.jobs.shards import read_plan, read_rejects, read_rows
from vlm_detect.measures.calibration import FILE, MeasureCalibration
from vlm_detect.progress import progress
from vlm_detect.records import REASON_KINDS, Reject


@dataclass
class Tally:
    """Counts of the added reasons, for the card."""

    images: Counter[str] = field(default_factory=Counter)  # by label
    without: Counter[str] = field(default_factory=Counter)  # images without a reason, by label
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by (source, kind, supports)

    def count(self, label: str, reasons: list[dict[str, Any]]) -> None:
        self.images[label] += 1
        self.without[label] += not reasons
        self.reasons.update((reason["source"], reason["kind"], reason["supports"]) for reason in reasons)


def pack_reasons(plan: ReasonsPlan, work: Path, out: Path) -> Packed:
    """Write the dataset `out`: the rows of the old one with the found reasons."""
    members, source = open_members(plan.dataset), Path(plan.dataset)
    unit = "pairs" if "twin" in members.columns else "images"
    columns = REASON_COLUMNS[unit]
    features = Features({**members.features, **{name: List(REASON_FEATURES) for name in columns.values()}})
    tally = Tally()
    with written_whole(out) as partial:
        writer = SplitWriter(partial / "data", features, plan.wanted.reasons.rows_per_file)
        for split, row in _with_reasons(plan, work, members, columns, tally):
            writer.write(split, row)
        calibration = _copy_files(source, work, partial)
        rejects = _rejects(source, work)
        section = reasons_section(tally.images, tally.without, tally.reasons, calibration, _facts(plan, work))
        card = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").is_file() else "# Dataset"
        return finish_folder(
            partial, writer, unit, rejects, plan.settings, functools.partial(_card, before=card, section=section)
        )


def _with_reasons(
    plan: ReasonsPlan, work: Path, members: Members, columns: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of every row, with the found reasons and those of other sources."""
    measured, taught, imported = (StepReasons(work / name) for name in ("measured", "teacher", "imported"))
    for number, split, row in progress(members.numbered(0, members.rows), "pack", total=members.rows, unit="row"):
        for member in members.of_row(number, split, row):
            name = columns[member.column]
            kept = [reason for reason in row.get(name) or [] if reason["source"] not in plan.sources]
            edits = _of_edit(member, plan.wanted.reasons.seed) if "edit" in plan.sources else []
            others = [*taught.at(number, member.column), *imported.at(number, member.column)]
            row[name] = [*measured.at(number, member.column), *edits, *others, *kept]
            tally.count(member.label, row[name])
        yield split, row


class StepReasons:
    """Iterate over the reasons of a finished step in row order; empty if the step was not run."""

    def __init__(self, folder: Path) -> None:
        plan = read_plan(folder) if (folder / "plan.json").is_file() else None
        self._rows = (row for shard in range(plan.shards if plan else 0) for row in read_rows(folder, shard))
        self._ahead = next(self._rows, None)
        self._found: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def at(self, number: int, column: str) -> list[dict[str, Any]]:
        while self._ahead is not None and self._ahead["row"] <= number:
            self._found[self._ahead["row"], self._ahead["column"]] = self._ahead["reasons"]
            self._ahead = next(self._rows, None)
        return self._found.pop((number, column), [])


def _of_edit(member: Member, seed: int) -> list[dict[str, Any]]:
    if not member.edit:
        return []
    try:
        image = member.image
        reasons = edit_reasons(member.edit, image.size, seed=f"{seed}:{image.sha256}")
    except UserError:  # it cannot be read, as recorded in the rejects of the measures
        return []
    return [reason.to_row() for reason in reasons]


def _facts(plan: ReasonsPlan, work: Path) -> dict[str, str]:
    """The card's facts on teacher and imported sentences: their source, judge, and the number kept."""
    found: dict[str, str] = {}
    teacher = plan.wanted.teacher
    if "teacher" in plan.steps:
        same = judge_of(teacher) == teacher_of(teacher)
        found["Teacher"] = f"{teacher_of(teacher)}; judge: {'the teacher itself' if same else judge_of(teacher)}"
        found["Kept teacher's sentences"] = kept_of(work / "teacher")
    if "imported" in plan.steps:
        found["Imported"] = f"{plan.wanted.texts.texts}; judge: {judge_of(teacher) or 'none'}"
        found["Kept imported sentences"] = kept_of(work / "imported")
    if found:
        models = [model for model in (teacher_of(teacher), judge_of(teacher)) if model and model.leaves_this_machine]
        found["Images were sent to"] = ", ".join(sorted({str(model.endpoint) for model in models})) or "nobody"
    return found


def kept_of(folder: Path) -> str:
    """For a step with judged sentences: the kept and total numbers by kind, and the reasons of rejection."""
    plan, kept, proposed, left_out = read_plan(folder), Counter[str](), Counter[str](), Counter[str]()
    for shard in range(plan.shards):
        kept.update(reason["kind"] for row in read_rows(folder, shard) for reason in row["reasons"])
        for reject in read_rejects(folder, shard):
            left_out[reject.reason] += 1
            kind = reject.detail.partition(":")[0]
            proposed.update([kind] if kind in REASON_KINDS else [])
    proposed += kept
    by_kind = ", ".join(f"{kept[kind]} of {count} {kind}" for kind, count in proposed.most_common())
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return f"{kept.total()} of {proposed.total()} ({by_kind or 'none'}); rejected: {reasons or 'none'}"


def _copy_files(source: Path, work: Path, partial: Path) -> MeasureCalibration | None:
    """Copy the other files of the dataset's folder, and write the new calibration; returns the one in effect."""
    written = {"data", "README.md", "run.json", "audit.json", "rejects.parquet"}
    for path in source.iterdir() if source.is_dir() else []:
        if path.name not in written and not path.name.startswith("."):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, partial / path.name)
    if (work / FILE).is_file():
        shutil.copy2(work / FILE, partial / FILE)
    return MeasureCalibration.load(partial)


def _rejects(source: Path, work: Path) -> list[Reject]:
    old = source / "rejects.parquet"
    rejects = [Reject(**row) for row in pq.read_table(old).to_pylist()] if old.is_file() else []
    for step in ("measures", "measured", "teacher", "imported"):
        if (work / step / "plan.json").is_file():
            plan = read_plan(work / step)
            rejects += [reject for shard in range(plan.shards) for reject in read_rejects(work / step, shard)]
    return rejects


def _card(_packed: Packed, *, before: str, section: str) -> str:
    """The existing card with this section, which replaces an older one."""
    head, _, old = before.partition("\n## Reasons\n")
    _, mark, rest = old.partition("\n## ")
    return f"{head.rstrip()}\n\n{section}\n{mark}{rest}"
