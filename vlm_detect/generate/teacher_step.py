"""A teacher's reasons: it is shown what is what, says what it sees, and is believed where it can be checked.

    plan = plan_teacher(members, "data/pairs", config)
    run_shards(TeacherShard("data/pairs", config, plan, work / "teacher"), plan, work / "teacher", launch)

A photo and its twin are shown together, in both orders, one draw each; an image that has no twin is shown twice. What
both draws say alike is put to a judge that is not told the label, of the image and of its counterpart (`judge.py`).
Every sentence that is left out is a row of the rejects. Edits are passed over: their rows say what was done.

Finished shards are kept whatever happens to the endpoint, and the same command goes on behind them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from vlm_detect.data.members import Member, Members, open_members
from vlm_detect.errors import UserError
from vlm_detect.generate.asked_models import AskedModel, open_model
from vlm_detect.generate.judge import Judgement, Statement, judge
from vlm_detect.generate.measure_step import SPOKEN_FEATURES
from vlm_detect.generate.options import TeacherConfig
from vlm_detect.generate.sightings import (
    SCHEMA,
    Sighting,
    Unusable,
    agreed,
    box_in_pixels,
    check_sighting,
    pair_question,
    read_sightings,
    single_question,
)
from vlm_detect.infer.endpoint import Prompt, Reply
from vlm_detect.jobs.shards import Plan, counted, read_plan, read_rejects, read_rows, write_shard
from vlm_detect.places import place_of
from vlm_detect.records import REASON_KINDS, Label, Reason, Reject

STAGE = "teacher"
TEMPERATURE = 0.7
TOKENS = 700  # of an answer, at most


def teacher_of(config: TeacherConfig) -> AskedModel:
    assert config.teacher is not None
    return AskedModel(config.teacher, config.teacher_endpoint, config.api_key_env, config.parallel)


def judge_of(config: TeacherConfig) -> AskedModel:
    """By default the teacher."""
    if config.judge is None:
        return teacher_of(config)
    return AskedModel(config.judge, config.judge_endpoint, config.api_key_env, config.parallel)


def checked_by(config: TeacherConfig) -> str:
    """What a reason says of its judge: a judge that is its own teacher is named as such."""
    judge_model = judge_of(config)
    return f"{judge_model.name} (the teacher itself)" if judge_model == teacher_of(config) else judge_model.name


def plan_teacher(members: Members, dataset: str, config: TeacherConfig) -> Plan:
    rows = min(members.rows, config.teacher_limit or members.rows)
    questions = hashlib.sha256(f"{_prompts_of(())}{SCHEMA}".encode()).hexdigest()[:16]
    settings = {"dataset": dataset, "asked": questions, **asdict(config)}
    for name in ("parallel", "api_key_env"):  # change nothing of what comes out
        settings.pop(name)
    return Plan(STAGE, rows, config.teacher_shard_size, members.fingerprint, settings)


@dataclass(frozen=True)
class Cost:
    """What a run asks at most: requests, the images in them, and tokens of text (four letters each)."""

    draws: int
    draw_images: int
    draw_tokens: int
    answer_tokens: int
    judge_requests: int

    def __str__(self) -> str:
        return (
            f"{self.draws} questions to the teacher with {self.draw_images} images and about {self.draw_tokens} tokens "
            f"of text, answers of at most {self.answer_tokens} tokens; at most {self.judge_requests} questions to the "
            "judge, of one image each"
        )


def cost(members: Members, plan: Plan) -> Cost:
    """Without asking anything: every answer counted at its longest."""
    draws = images = tokens = statements = 0
    for item in _items(members, 0, plan.items):
        prompts = _prompts_of(item)
        draws += len(prompts)
        images += len(item) * len(prompts)
        tokens += sum(len(prompt) // 4 for prompt in prompts)
        statements += 4 * len(item)
    return Cost(draws, images, tokens, draws * TOKENS, statements)


@dataclass(frozen=True)
class TeacherShard:
    """The teacher's reasons for one shard's rows; called in whichever process has it."""

    dataset: str
    config: TeacherConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        rejects: list[Reject] = []
        start, stop = self.plan.span(shard)
        items = list(_usable(counted(_items(open_members(self.dataset), start, stop)), rejects))
        teacher = open_model(teacher_of(self.config))
        prompts = [prompt for number, item in enumerate(items) for prompt in _draws(item, start + number)]
        replies = iter(teacher.answer(prompts, TOKENS) if prompts else [])
        claims: list[tuple[list[Member], Sighting]] = []
        for item in items:
            draws = [next(replies) for _ in _prompts_of(item)]
            claims += [(item, sighting) for sighting in _heard(item, draws, rejects)]
        statements = [_statement(item, sighting) for item, sighting in claims]
        judged = judge(open_model(judge_of(self.config)), statements) if statements else []
        reasons: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for (item, sighting), judgement in zip(claims, judged, strict=True):
            member = item[sighting.image]
            if judgement.holds(self.config.min_margin):
                reason = self._reason(member, sighting, judgement)
                reasons.setdefault((member.row, member.column), []).append(reason.to_row())
            else:
                told = f"{sighting.kind}: {sighting.text} ({judgement})"
                rejects.append(Reject(member.id, STAGE, "not_borne_out" if judgement.alone else "not_denied", told))
        rows = [{"row": row, "column": column, "reasons": some} for (row, column), some in sorted(reasons.items())]
        write_shard(self.folder, shard, rows, SPOKEN_FEATURES, rejects)

    def _reason(self, member: Member, sighting: Sighting, judgement: Judgement) -> Reason:
        return Reason(
            text=sighting.text,
            kind=sighting.kind,
            supports=member.label,
            source="teacher",
            box=box_in_pixels(sighting.box, member.image.size) if sighting.box else None,
            margin=None if judgement.margin is None else round(judgement.margin, 2),
            checked_by=checked_by(self.config) + (", without a counterpart" if judgement.alone else ""),
        )


def facts(config: TeacherConfig, folder: Path) -> dict[str, str]:
    """What a card says of a finished step: who saw and who judged, where images went, how much was kept."""
    plan, kept, proposed, left_out = read_plan(folder), Counter[str](), Counter[str](), Counter[str]()
    for shard in range(plan.shards):
        kept.update(reason["kind"] for row in read_rows(folder, shard) for reason in row["reasons"])
        for reject in read_rejects(folder, shard):
            left_out[reject.reason] += 1
            kind = reject.detail.partition(":")[0]
            proposed.update([kind] if kind in REASON_KINDS else [])
    proposed += kept
    teacher, judging = teacher_of(config), judge_of(config)
    sent = sorted({model.endpoint for model in (teacher, judging) if model.endpoint and model.leaves_this_machine})
    by_kind = ", ".join(f"{kept[kind]} of {count} {kind}" for kind, count in proposed.most_common())
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return {
        "Teacher": f"{teacher}; judge: {'the teacher itself' if judging == teacher else judging}",
        "Images were sent to": ", ".join(sent) or "nobody",
        "Of the teacher's sentences were kept": f"{kept.total()} of {proposed.total()} ({by_kind or 'none'})",
        "Left out": reasons or "none",
    }


def _items(members: Members, start: int, stop: int) -> Iterator[list[Member]]:
    """What the teacher is shown together: a photo and its twin, or one image."""
    for number, split, row in members.numbered(start, stop):
        found = members.of_row(number, split, row)
        if len(found) == 1 or (found[0].label, found[1].label) == ("real", "generated"):
            yield found


def _usable(items: Iterator[list[Member]], rejects: list[Reject]) -> Iterator[list[Member]]:
    for item in items:
        try:
            for member in item:
                member.image.open()
        except UserError as error:
            rejects.append(Reject(item[0].id, STAGE, "unreadable", str(error)))
        else:
            yield item


def _prompts_of(item: Sequence[Member]) -> list[str]:
    """The questions of both draws; of no item at all those of every case, by which a plan knows them."""
    if not item:
        pairs = [pair_question(photo_first=first, twin="generated") for first in (True, False)]
        return [*pairs, *(single_question(label, again=again) for label in get_args(Label) for again in (False, True))]
    if len(item) == 1:
        return [single_question(item[0].label, again=again) for again in (False, True)]
    return [pair_question(photo_first=first, twin=item[1].label) for first in (True, False)]


def _draws(item: Sequence[Member], number: int) -> Iterator[Prompt]:
    """Two draws; those of a pair show it in both orders."""
    images = [member.image.open() for member in item]
    for draw, text in enumerate(_prompts_of(item)):
        shown = tuple(images if draw == 0 else reversed(images))
        yield Prompt(shown, text, schema=SCHEMA, temperature=TEMPERATURE, seed=2 * number + draw)


def _heard(item: Sequence[Member], draws: Sequence[Reply], rejects: list[Reject]) -> list[Sighting]:
    """What both draws say alike and can stand alone; all else becomes rejects."""
    seen: list[list[Sighting]] = []
    said_something = False
    for number, reply in enumerate(draws):
        try:
            if reply.failure:
                raise Unusable(reply.failure, reply.text)
            found, faults = read_sightings(reply.text, images=len(item))
        except Unusable as fault:
            rejects.append(Reject(item[-1].id, STAGE, fault.reason, f"draw {number + 1}: {fault.detail}"))
            return []
        said_something |= bool(found or faults)
        rejects += [Reject(item[-1].id, STAGE, fault.reason, fault.detail) for fault in faults]
        if number == 1:  # the images came in the other order
            found = [Sighting(len(item) - 1 - one.image, one.kind, one.text, one.box) for one in found]
        seen.append(found)
    if not said_something:
        rejects.append(Reject(item[-1].id, STAGE, "sees_nothing"))
    kept, dropped = agreed(*seen)
    rejects += [Reject(item[one.image].id, STAGE, "draws_differ", f"{one.kind}: {one.text}") for one in dropped]
    usable = []
    for one in kept:
        try:
            check_sighting(one, item[one.image].label)
        except Unusable as fault:
            rejects.append(Reject(item[one.image].id, STAGE, fault.reason, fault.detail))
        else:
            usable.append(one)
    return usable


def _statement(item: Sequence[Member], sighting: Sighting) -> Statement:
    image = item[sighting.image].image.open()
    other = item[1 - sighting.image].image.open() if len(item) == 2 else None
    place = place_of(box_in_pixels(sighting.box, image.size), image.size) if sighting.box else None
    return Statement(sighting.text, image, other, place)
