"""A teacher's reasons: it sees the labels, describes what it sees, and its sentences are verified.

    plan = plan_teacher(members, "data/pairs", config)
    run_shards(TeacherShard("data/pairs", config, plan, work / "teacher"), plan, work / "teacher", launch)

A photo and its twin are shown together, in both orders, one sample each; an image without a twin is shown twice.
Sentences on which both samples agree go to a judge without the label, for the image and for its counterpart
(`judge.py`). Every rejected sentence is a row of the rejects. Edits are skipped: their rows already have the operation
and place.

Finished shards are kept if the endpoint fails, and the same command resumes after them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from vlm_detect.data.members import Member, Members, open_members
from vlm_detect.errors import UserError
from vlm_detect.generate.asked_models import AskedModel, open_model
from vlm_detect.generate.judging import Judging
from vlm_detect.generate.measure_step import SENTENCE_FEATURES
from vlm_detect.generate.reason_options import TeacherConfig
from vlm_detect.generate.sightings import (
    SCHEMA,
    Sighting,
    Unusable,
    agreed,
    check_sighting,
    pair_question,
    read_sightings,
    single_question,
)
from vlm_detect.infer.endpoint import Prompt, Reply
from vlm_detect.jobs.shards import Plan, counted, write_shard
from vlm_detect.records import EDITED_KINDS, Label, ReasonSource, Reject, label_named

STAGE = "teacher"
TEMPERATURE = 0.7
TOKENS = 700  # maximum per answer


def teacher_of(config: TeacherConfig) -> AskedModel | None:
    if config.teacher is None:
        return None
    return AskedModel(config.teacher, config.teacher_endpoint, config.api_key_env, config.parallel)


def judge_of(config: TeacherConfig) -> AskedModel | None:
    """The judge; default: the teacher."""
    if config.judge is None:
        return teacher_of(config)
    return AskedModel(config.judge, config.judge_endpoint, config.api_key_env, config.parallel)


def judging_of(config: TeacherConfig, source: ReasonSource) -> Judging:
    """Connect or load. A judge that equals the teacher is named as such."""
    model = judge_of(config)
    if model is None:
        return Judging(None, config.min_margin, "", source)
    checked_by = f"{model.name} (the teacher itself)" if model == teacher_of(config) else model.name
    return Judging(open_model(model), config.min_margin, checked_by, source)


def plan_teacher(members: Members, dataset: str, config: TeacherConfig) -> Plan:
    rows = min(members.rows, config.teacher_limit or members.rows)
    questions = hashlib.sha256(f"{_prompts_of(())}{SCHEMA}".encode()).hexdigest()[:16]
    settings = {"dataset": dataset, "asked": questions, **asdict(config)}
    for name in ("parallel", "api_key_env"):  # do not affect the result
        settings.pop(name)
    return Plan(STAGE, rows, config.teacher_shard_size, members.fingerprint, settings)


def has_items(members: Members) -> bool:
    """Whether there is anything to ask a teacher about; a pair dataset of edits alone has nothing. Reads no image."""
    if "twin" not in members.columns:
        return members.rows > 0
    return any(
        kind not in EDITED_KINDS and label_named(str(label)) == "real"
        for rows in members.splits.values()
        for kind, label in zip(rows["kind"], rows["image_label"], strict=True)
    )


@dataclass(frozen=True)
class Cost:
    """Upper bounds of a run: requests, their images, and text tokens (four letters each)."""

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
    """Estimate without any request: every answer at its maximum length."""
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
    """The teacher's reasons for one shard's rows; called in any process."""

    dataset: str
    config: TeacherConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        rejects: list[Reject] = []
        start, stop = self.plan.span(shard)
        items = list(_usable(counted(_items(open_members(self.dataset), start, stop)), rejects))
        model = teacher_of(self.config)
        assert model is not None  # otherwise there is no such plan
        teacher = open_model(model)
        prompts = [prompt for number, item in enumerate(items) for prompt in _draws(item, start + number)]
        replies = iter(teacher.answer(prompts, TOKENS) if prompts else [])
        claims: list[tuple[list[Member], Sighting]] = []
        for item in items:
            draws = [next(replies) for _ in _prompts_of(item)]
            claims += [(item, sighting) for sighting in _heard(item, draws, rejects)]
        judging = judging_of(self.config, "teacher")
        write_shard(self.folder, shard, judging.rows(claims, rejects), SENTENCE_FEATURES, rejects)


def _items(members: Members, start: int, stop: int) -> Iterator[list[Member]]:
    """The images of one request to the teacher: a photo and its twin, or one image."""
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
    """The questions of both samples; without items, those of every case, to identify a plan."""
    if not item:
        pairs = [pair_question(photo_first=first, twin="generated") for first in (True, False)]
        return [*pairs, *(single_question(label, again=again) for label in get_args(Label) for again in (False, True))]
    if len(item) == 1:
        return [single_question(item[0].label, again=again) for again in (False, True)]
    return [pair_question(photo_first=first, twin=item[1].label) for first in (True, False)]


def _draws(item: Sequence[Member], number: int) -> Iterator[Prompt]:
    """Two samples; a pair is shown in both orders."""
    images = [member.image.open() for member in item]
    for draw, text in enumerate(_prompts_of(item)):
        shown = tuple(images if draw == 0 else reversed(images))
        yield Prompt(shown, text, schema=SCHEMA, temperature=TEMPERATURE, seed=2 * number + draw)


def _heard(item: Sequence[Member], draws: Sequence[Reply], rejects: list[Reject]) -> list[Sighting]:
    """The self-contained sentences on which both samples agree; the others become rejects."""
    seen: list[list[Sighting]] = []
    said_something = False
    for number, reply in enumerate(draws):
        try:
            if reply.failure:
                raise Unusable(reply.failure, reply.text)
            found, faults = read_sightings(reply.text, images=len(item))
        except Unusable as fault:
            rejects.append(Reject(item[-1].id, STAGE, fault.reason, f"sample {number + 1}: {fault.detail}"))
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
