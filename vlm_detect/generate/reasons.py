"""Reasons for the labels of a finished dataset (`data_gen/reasons.py`): the same rows, with sentences beside them.

    WORK/measures/       shards: every image's numbers
    WORK/measures.json   what the training split's photos measure, and which measures tell its classes apart
    WORK/measured/       shards: measured reasons
    WORK/teacher/        shards: what a teacher saw and a judge bore out

An image dataset gains the column `reasons`, a pair dataset `image_reasons` and `twin_reasons`. A dataset that has
reasons already keeps those of other sources than are asked for. All else is copied: rows, splits, card and rejects.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, List

from vlm_detect.columns import REASON_COLUMNS, REASON_FEATURES
from vlm_detect.config import read_run_json
from vlm_detect.data.members import Member, Members, open_members
from vlm_detect.errors import UsageError, UserError
from vlm_detect.generate.card import reasons_section
from vlm_detect.generate.dataset_files import Packed, SplitWriter, finish_folder, written_whole
from vlm_detect.generate.edit_reasons import edit_reasons
from vlm_detect.generate.measure_step import MeasureShard, SpeakShard, calibrate, plan_measures, plan_speaking
from vlm_detect.generate.options import ReasonsConfig, TeacherConfig
from vlm_detect.generate.teacher_step import TeacherShard, cost, facts, judge_of, plan_teacher, teacher_of
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, begin, read_plan, read_rejects, read_rows
from vlm_detect.measures.calibration import FILE, MeasureCalibration
from vlm_detect.progress import progress
from vlm_detect.records import ReasonSource, Reject


@dataclass(frozen=True)
class ReasonsPlan:
    """What is added to which dataset."""

    dataset: str
    sources: tuple[ReasonSource, ...]
    measures: Plan
    settings: dict[str, Any]  # those of the dataset, and these
    teacher: Plan | None = None


def plan_reasons(dataset: str, out: Path, config: ReasonsConfig, teacher: TeacherConfig | None = None) -> ReasonsPlan:
    """UserError where `dataset` is none, is `out`, or has no edits where reasons of edits are asked for."""
    teacher = teacher or TeacherConfig()
    wants_teacher = config.reasons is not None and "teacher" in config.reasons.sources
    if wants_teacher != (teacher.teacher is not None):
        raise UsageError("--reasons teacher and --teacher MODEL go together: give both, or neither")
    if Path(dataset).resolve() == out.resolve():
        raise UserError(f"--out {out}: is the dataset itself; give another folder")
    members = open_members(dataset)
    has_edits = _has_edits(members)
    if config.reasons is None:
        sources: tuple[ReasonSource, ...] = ("measured", "edit") if has_edits else ("measured",)
    else:
        sources = tuple(config.reasons.sources)
    if "edit" in sources and not has_edits:
        raise UserError(f"--reasons {config.reasons}: {dataset} has no row that tells of an edit; leave edit out")
    measures = plan_measures(members, dataset, config.shard_size)
    before = (read_run_json(dataset) or {}).get("config", {})
    own = {"dataset": dataset, "inputs": members.fingerprint, **asdict(config), "reasons": ",".join(sources)}
    if not wants_teacher:
        return ReasonsPlan(dataset, sources, measures, {**before, "reasons": own})
    asking = plan_teacher(members, dataset, teacher)
    return ReasonsPlan(dataset, sources, measures, {**before, "reasons": own | asking.settings}, asking)


def _has_edits(members: Members) -> bool:
    if not {"edit", "twin"} <= set(members.features):
        return False
    return any(edit and edit.get("operation") for rows in members.splits.values() for edit in rows["edit"])


def announce(plan: ReasonsPlan, teacher: TeacherConfig) -> list[str]:
    """What a run does and costs, and to whom images go, in a line each."""
    members = open_members(plan.dataset)
    lines = [f"{plan.dataset}: {members.rows} rows, reasons: {', '.join(plan.sources)}"]
    if plan.teacher is not None:
        lines.append(f"at most {cost(members, plan.teacher)}")
        for role, model in (("teacher", teacher_of(teacher)), ("judge", judge_of(teacher))):
            if model.leaves_this_machine:
                lines.append(f"images leave this machine: they are sent to {model.endpoint} (the {role}, {model.name})")
    return lines


def find_reasons(
    plan: ReasonsPlan,
    config: ReasonsConfig,
    work: Path,
    launch: Launch | None = None,
    teacher: TeacherConfig | None = None,
) -> str | None:
    """All that takes time; the id of the job where a cluster was only handed the work, None when all is done."""
    if "measured" in plan.sources and (job := _find_measured(plan, config, work, launch)):
        return job
    if plan.teacher is None or teacher is None:
        return None
    folder = work / "teacher"
    begin(folder, plan.teacher)
    return run_shards(TeacherShard(plan.dataset, teacher, plan.teacher, folder), plan.teacher, folder, launch)


def _find_measured(plan: ReasonsPlan, config: ReasonsConfig, work: Path, launch: Launch | None) -> str | None:
    measures, measured = work / "measures", work / "measured"
    begin(measures, plan.measures)
    if job := run_shards(MeasureShard(plan.dataset, plan.measures, measures), plan.measures, measures, launch):
        return job
    if not (work / FILE).is_file():
        calibrate(measures).save(work)
    speaking = plan_speaking(plan.measures, work, seed=config.seed, most=config.measured_reasons)
    begin(measured, speaking)
    return run_shards(SpeakShard(plan.dataset, speaking, work, measured), speaking, measured, launch)


@dataclass
class Tally:
    """What was added, counted for the card."""

    images: Counter[str] = field(default_factory=Counter)  # by label
    without: Counter[str] = field(default_factory=Counter)  # images without a reason, by label
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by (source, kind, supports)

    def count(self, label: str, reasons: list[dict[str, Any]]) -> None:
        self.images[label] += 1
        self.without[label] += not reasons
        self.reasons.update((reason["source"], reason["kind"], reason["supports"]) for reason in reasons)


def pack_reasons(
    plan: ReasonsPlan, config: ReasonsConfig, work: Path, out: Path, teacher: TeacherConfig | None = None
) -> Packed:
    """Write the dataset `out`: the rows of the old one with what was found beside them."""
    members, source = open_members(plan.dataset), Path(plan.dataset)
    unit = "pairs" if "twin" in members.columns else "images"
    columns = REASON_COLUMNS[unit]
    features = Features({**members.features, **{name: List(REASON_FEATURES) for name in columns.values()}})
    tally = Tally()
    with written_whole(out) as partial:
        writer = SplitWriter(partial / "data", features, config.rows_per_file)
        for split, row in _with_reasons(plan, config, work, members, columns, tally):
            writer.write(split, row)
        calibration = _copy_files(source, work, partial)
        rejects = _rejects(source, work)
        taught = facts(teacher, work / "teacher") if teacher is not None and plan.teacher is not None else {}
        section = reasons_section(tally.images, tally.without, tally.reasons, calibration, taught)
        card = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").is_file() else "# Dataset"
        return finish_folder(
            partial, writer, unit, rejects, plan.settings, functools.partial(_card, before=card, section=section)
        )


def _with_reasons(
    plan: ReasonsPlan,
    config: ReasonsConfig,
    work: Path,
    members: Members,
    columns: Mapping[str, str],
    tally: Tally,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of every row, with all of its reasons: measured, of edits, and those that it had."""
    measured, taught = (Spoken(work / name) for name in ("measured", "teacher"))
    for number, split, row in progress(members.numbered(0, members.rows), "pack", total=members.rows, unit="row"):
        for member in members.of_row(number, split, row):
            name = columns[member.column]
            kept = [reason for reason in row.get(name) or [] if reason["source"] not in plan.sources]
            edits = _of_edit(member, config.seed) if "edit" in plan.sources else []
            found = [*measured.of(number, member.column), *edits, *taught.of(number, member.column)]
            row[name] = [*found, *kept]
            tally.count(member.label, row[name])
        yield split, row


class Spoken:
    """The reasons that a finished step found, asked for in the order of the rows; none where the step was not run."""

    def __init__(self, folder: Path) -> None:
        plan = read_plan(folder) if (folder / "plan.json").is_file() else None
        self._rows = (row for shard in range(plan.shards if plan else 0) for row in read_rows(folder, shard))
        self._ahead = next(self._rows, None)
        self._found: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def of(self, number: int, column: str) -> list[dict[str, Any]]:
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
    except UserError:  # it cannot be read, which the numbers' rejects tell
        return []
    return [reason.to_row() for reason in reasons]


def _copy_files(source: Path, work: Path, partial: Path) -> MeasureCalibration | None:
    """Whatever else the dataset's folder holds, and the new calibration; the one that stands there then."""
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
    for step in ("measures", "measured", "teacher"):
        if (work / step / "plan.json").is_file():
            plan = read_plan(work / step)
            rejects += [reject for shard in range(plan.shards) for reject in read_rejects(work / step, shard)]
    return rejects


def _card(_packed: Packed, *, before: str, section: str) -> str:
    """The card that was there, with this section in the place of an older one."""
    head, _, old = before.partition("\n## Reasons\n")
    _, mark, rest = old.partition("\n## ")
    return f"{head.rstrip()}\n\n{section}\n{mark}{rest}"
