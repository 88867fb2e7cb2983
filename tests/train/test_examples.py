"""Units: both classes in each, equal questions for both members, every draw from (seed, epoch, index) alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.train.toys import toy_images, toy_pair, toy_pairs
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.errors import UserError
from vlm_detect.questions.ask import FAKE_QUESTION, REAL_QUESTION
from vlm_detect.records import Reason
from vlm_detect.train.examples import EpochSampler, Units
from vlm_detect.train.options import QuestionOptions


def brightness(image):
    return float(np.asarray(image.open()).mean())


def test_a_pair_is_one_unit_with_equal_questions_and_opposite_answers():
    units = Units(toy_pairs(6), QuestionOptions(questions_per_image=2))
    assert len(units) == 6
    for index in range(6):
        photo, twin = units[0, index]
        assert (photo.label, twin.label) == ("real", "generated")
        assert brightness(photo.image) < 125 < brightness(twin.image)
        assert [q.question for q in photo.questions] == [q.question for q in twin.questions]
        assert all(a.answer != b.answer for a, b in zip(photo.questions, twin.questions, strict=True))


def test_samples_depend_on_the_epoch_only():
    rows = toy_pairs(20)
    units, again = Units(rows, QuestionOptions(), seed=1), Units(rows, QuestionOptions(), seed=1)
    asked = [[units[epoch, i][0].questions for i in range(20)] for epoch in range(2)]
    assert asked[0] == [again[0, i][0].questions for i in range(20)]
    assert asked[0] != asked[1]
    assert {questions[0].question for questions in asked[0]} == {FAKE_QUESTION, REAL_QUESTION}


def test_image_datasets_are_balanced_and_every_image_is_used():
    units = Units(toy_images(["real"] * 3 + ["generated"] * 8 + ["edited"] * 2), QuestionOptions())
    assert len(units) == 8 + 2
    members = [units[0, i] for i in range(len(units))]
    assert all(unit[0].label == "real" and brightness(unit[0].image) < 125 for unit in members)
    assert [unit[1].label for unit in members] == ["generated"] * 8 + ["edited"] * 2
    assert len({unit[1].image.key for unit in members}) == 10
    assert all(
        "altered" in q.question or "alterations" in q.question for unit in members[8:] for q in unit[1].questions
    )


def test_the_twin_of_a_generated_image_has_questions_on_edits_only():
    rng = np.random.default_rng(0)
    edit = {"operation": "blur", "box": [0, 0, 4, 4], "strength": 1.0}
    rows = [
        toy_pair(0, rng),
        toy_pair(1, rng, image_label="generated", kind="vae"),
        toy_pair(2, rng, image_label="generated", kind="edit", edit=edit),
    ]
    units = Units(toy_pairs(1).from_list(rows, features=PAIR_FEATURES), QuestionOptions(question_kinds=["attribution"]))
    assert len(units) == 2
    before, after = units[0, 1]
    assert (before.label, after.label) == ("generated", "edited")
    assert before.questions[0].question == after.questions[0].question  # attribution cannot be asked: the verdict is


def test_shuffled_labels_are_wrong_for_half_of_the_units_in_every_epoch():
    units = Units(toy_pairs(10), QuestionOptions(shuffle_labels=True))
    for epoch in range(2):
        wrong = [
            brightness(units[epoch, i][0].image) < 125 and units[epoch, i][0].label == "generated" for i in range(10)
        ]
        assert sum(wrong) == 5
        assert {i for i, is_wrong in enumerate(wrong) if is_wrong} == units.swapped


def test_the_sampler_reshuffles_each_epoch():
    sampler = EpochSampler(10, seed=0)
    first = list(sampler)
    assert sorted(first) == [(0, i) for i in range(10)]
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert [i for _, i in sampler] != [i for _, i in first]


def with_reasons(rows):
    """Every image with one reason at its upper left."""
    reasons = [
        [Reason("Its noise is odd at the upper left.", "noise", label, "measured", (0, 0, 5, 5)).to_row()]
        for label in rows["label"]
    ]
    return rows.add_column("reasons", reasons)


def test_reasons_are_mirrored_with_the_image():
    rows = with_reasons(toy_images(["real", "generated"] * 10))
    units = Units(rows, QuestionOptions(question_kinds=["explain"]), augment=["flip"])
    seen = set()
    for epoch in range(4):
        for index in range(10):
            for example in units[epoch, index]:
                flipped = bool(getattr(example.image, "augmentation", ()))
                place = "upper right" if flipped else "upper left"
                assert place in example.questions[0].answer
                seen.add(flipped)
    assert seen == {True, False}


def test_an_explained_image_keeps_the_measured_pixels():
    rows = with_reasons(toy_images(["real", "generated"] * 10))
    options = QuestionOptions(question_kinds=["explain", "yes_no"])
    augmented = set()
    for index in range(10):
        for epoch in range(6):
            unit = Units(rows, options, augment=["jpeg", "noise", "flip"])[epoch, index]
            kinds = {question.kind for example in unit for question in example.questions}
            names = {name for example in unit for name, _ in getattr(example.image, "augmentation", ())}
            if "explain" in kinds:
                assert names <= {"flip"}
            else:
                augmented |= names
    assert augmented == {"jpeg", "noise", "flip"}


def test_unknown_kind():
    with pytest.raises(UserError, match="riddle"):
        Units(toy_pairs(1), QuestionOptions(question_kinds=["riddle"]))
