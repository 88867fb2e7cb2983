"""Add reasons to a finished dataset (`vlm-detect add-reasons`): the plan and its steps.

plan = plan_reasons("data/pairs", out, Wanted(ReasonsConfig(), TeacherConfig(), TextsConfig()))
find_reasons(plan, work, launch)            # the slow part, in shards
pack_reasons(plan, work, out)               # reason_rows.py: the same rows with the found reasons

WORK/measures/       shards: every image's numbers
WORK/measures.json   the calibration: measurements of the training split, and which measures separate its classes
WORK/measured/       shards: measured reasons
WORK/teacher/        shards: a teacher's sentences that a judge confirmed
WORK/imported/       shards: third-party texts
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlm_detect.config import read_run_json
from vlm_detect.data.members import Members, open_members
from vlm_detect.errors import UsageError, UserError
from vlm_detect.generate.imported_step import ImportedShard, plan_imported
from vlm_detect.generate.measure_step import MeasureShard, SentenceShard, calibrate, plan_measures, plan_sentences
from vlm_detect.generate.reason_options import ReasonsConfig, TeacherConfig, TextsConfig
from vlm_detect.generate.teacher_step import TeacherShard, cost, has_items, judge_of, plan_teacher, teacher_of
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, begin
from vlm_detect.measures.calibration import FILE
from vlm_detect.records import ReasonSource


class Wanted(NamedTuple):
    """The flags of the program."""

    reasons: ReasonsConfig
    teacher: TeacherConfig
    texts: TextsConfig


@dataclass(frozen=True)
class ReasonsPlan:
    """The dataset and the reasons to add; `steps` are the plans of the slow steps by source."""

    dataset: str
    wanted: Wanted
    sources: tuple[ReasonSource, ...]
    steps: dict[ReasonSource, Plan]
    settings: dict[str, Any]  # the dataset's reasons, and these


def plan_reasons(dataset: str, out: Path, wanted: Wanted) -> ReasonsPlan:
    """Raises UserError if `dataset` is not a dataset, equals `out`, or has nothing that a requested source is about."""
    reasons, teacher, texts = wanted
    asked = reasons.reasons.sources if reasons.reasons else []
    if ("teacher" in asked) != (teacher.teacher is not None):
        raise UsageError("--reasons teacher and --teacher MODEL go together: give both, or neither")
    if ("imported" in asked) != (texts.texts is not None):
        raise UsageError("--reasons imported and --texts FILE go together: give both, or neither")
    if teacher.judge is not None and not {"teacher", "imported"} & set(asked):
        raise UsageError(
            f"--judge {teacher.judge}: checks sentences of --reasons teacher or imported; add one, or omit it"
        )
    if Path(dataset).resolve() == out.resolve():
        raise UsageError(f"--out {out}: is the input dataset; give another folder")
    members = open_members(dataset)
    has_edits = _has_edits(members)
    sources: tuple[ReasonSource, ...] = tuple(asked) or (("measured", "edit") if has_edits else ("measured",))
    if "edit" in sources and not has_edits:
        raise UserError(f"--reasons {reasons.reasons}: {dataset} has no edits; omit edit")
    if "teacher" in sources and not has_items(members):
        raise UserError(
            f"--reasons {reasons.reasons}: {dataset} has no photo with a generated twin to show a teacher, and edits "
            "are described by their rows; omit teacher"
        )
    steps: dict[ReasonSource, Plan] = {}
    if "measured" in sources:
        steps["measured"] = plan_measures(members, dataset, reasons.shard_size)
    if "teacher" in sources:
        steps["teacher"] = plan_teacher(members, dataset, teacher)
    if "imported" in sources:
        steps["imported"] = plan_imported(members, dataset, texts, teacher)
    before = (read_run_json(dataset) or {}).get("config", {})
    own = {"dataset": dataset, "inputs": members.fingerprint, **asdict(reasons), "reasons": ",".join(sources)}
    for source in ("teacher", "imported"):
        own |= {source: steps[source].settings} if source in steps else {}
    return ReasonsPlan(dataset, wanted, sources, steps, {**before, "reasons": own})


def _has_edits(members: Members) -> bool:
    if "edit" not in members.features:
        return False
    edits = (edit for rows in members.splits.values() for edit in rows["edit"])
    return any(edit and (edit.get("operation") or edit.get("box")) for edit in edits)


def announce(plan: ReasonsPlan) -> list[str]:
    """What a run does, its cost, and where images are sent, one line each."""
    members, teacher = open_members(plan.dataset), plan.wanted.teacher
    lines = [f"{plan.dataset}: {members.rows} rows, reasons: {', '.join(plan.sources)}"]
    if "teacher" in plan.steps:
        lines.append(f"at most {cost(members, plan.steps['teacher'])}")
    asked = {"teacher": teacher_of(teacher), "judge": judge_of(teacher)}
    for role, model in asked.items():
        if model is not None and model.leaves_this_machine:
            lines.append(f"images are sent from this machine to {model.endpoint} (the {role}, {model.name})")
    return lines


def find_reasons(plan: ReasonsPlan, work: Path, launch: Launch | None = None) -> str | None:
    """Run the slow steps; returns the id of a queued cluster job, None when all is done."""
    if "measured" in plan.steps and (job := _find_measured(plan, work, launch)):
        return job
    teacher, texts = plan.wanted.teacher, plan.wanted.texts
    asked = [model for model in (teacher_of(teacher), judge_of(teacher)) if model is not None]
    launch = (launch or Launch()).with_models(any(model.is_full_size for model in asked))
    for source, step in plan.steps.items():
        if source == "measured":
            continue
        folder = work / source
        begin(folder, step)
        task = (
            TeacherShard(plan.dataset, teacher, step, folder)
            if source == "teacher"
            else ImportedShard(plan.dataset, texts, teacher, step, folder)
        )
        if job := run_shards(task, step, folder, launch):
            return job
    return None


def _find_measured(plan: ReasonsPlan, work: Path, launch: Launch | None) -> str | None:
    measures, measured, step = work / "measures", work / "measured", plan.steps["measured"]
    begin(measures, step)
    if job := run_shards(MeasureShard(plan.dataset, step, measures), step, measures, launch):
        return job
    if not (work / FILE).is_file():
        calibrate(measures).save(work)
    reasons = plan.wanted.reasons
    speaking = plan_sentences(step, work, seed=reasons.seed, most=reasons.measured_reasons)
    begin(measured, speaking)
    return run_shards(SentenceShard(plan.dataset, speaking, work, measured), speaking, measured, launch)
