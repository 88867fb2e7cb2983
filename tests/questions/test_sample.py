"""Questions tell the truth, give nothing away by their text, and are the same for both members of a pair."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from vlm_detect.questions.ask import (
    EXPLAIN_QUESTION,
    FAKE_QUESTION,
    NO,
    REAL_QUESTION,
    VERDICT_QUESTIONS,
    YES,
    agrees,
)
from vlm_detect.questions.kind import training_kinds
from vlm_detect.questions.kinds.explain import origin
from vlm_detect.questions.sample import make_question, sample_questions
from vlm_detect.records import Reason, Subject

REAL = Subject(label="real", caption="a dog on a beach")
FAKE = Subject(label="generated", kind="caption", generator="sd3.5-large", caption="a dog on a beach")
EDITED = Subject(
    label="edited", kind="edit", edit={"operation": "blur", "box": [0, 0, 20, 20], "strength": 1.0}, size=(100, 100)
)
GENERATION = ["yes_no", "true_false", "multiple_choice", "attribution", "explain"]
EDIT = ["yes_no", "true_false", "operation", "place", "explain"]
OTHERS = ["a red barn in fields", "two cats on a bed", "a bowl of ripe fruit"]


def test_the_bi_lora_pair():
    assert VERDICT_QUESTIONS == {"fake": FAKE_QUESTION, "real": REAL_QUESTION}
    assert (FAKE_QUESTION, YES, NO) == ("Is this image AI-generated?", "Yes.", "No.")
    assert [agrees("generated", p) for p in ("fake", "real")] == [True, False]
    assert [agrees("real", p) for p in ("fake", "real")] == [False, True]


@pytest.mark.parametrize(("topic", "kind"), [*(("generation", k) for k in GENERATION), *(("edit", k) for k in EDIT)])
def test_every_kind_has_another_answer_for_either_class(topic, kind):
    classes = (REAL, FAKE) if topic == "generation" else (REAL, EDITED)
    asked = [make_question(s, kind, "fake", random.Random(3), topic=topic, other_captions=OTHERS) for s in classes]
    assert all(asked)
    assert asked[0].question == asked[1].question
    assert asked[0].answer != asked[1].answer


def test_members_of_a_pair_get_the_same_kinds_and_polarities():
    for seed in range(20):
        sampled = [
            sample_questions(s, random.Random(seed), kinds=training_kinds(), per_image=5, other_captions=OTHERS)
            for s in (REAL, FAKE)
        ]
        assert [(q.kind, q.polarity) for q in sampled[0]] == [(q.kind, q.polarity) for q in sampled[1]]


def test_two_yes_no_questions_are_the_two_polarities():
    sampled = sample_questions(FAKE, random.Random(0), kinds=["yes_no"], per_image=3)
    assert {(q.question, q.answer) for q in sampled} == {(FAKE_QUESTION, YES), (REAL_QUESTION, NO)}


def test_polarities_are_equally_frequent():
    asked = Counter(sample_questions(REAL, random.Random(seed))[0].answer for seed in range(200))
    assert 70 < asked[YES] < 130


def test_multiple_choice_has_two_options_a_verdict_and_any_letter_right():
    letters = Counter()
    for seed in range(200):
        question = make_question(FAKE, "multiple_choice", "fake", random.Random(seed), other_captions=OTHERS)
        options = dict(line.split(": ", 1) for line in question.question.splitlines()[1:5])
        assert sum("AI-generated" in text for text in options.values()) == 2
        assert options[question.answer] == "It is AI-generated: a dog on a beach."
        lengths = sorted(map(len, options.values()))
        assert lengths[-1] - lengths[0] <= 6  # the two verdicts differ by a letter, the captions by a few
        letters[question.answer] += 1
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 25


def test_edits_have_separate_questions():
    for seed in range(10):
        for question in sample_questions(
            EDITED, random.Random(seed), kinds=training_kinds(), per_image=5, topic="edit"
        ):
            assert question.question not in VERDICT_QUESTIONS.values()
            assert question.polarity is None
    assert sample_questions(EDITED, random.Random(0), kinds=["yes_no"]) == []
    unaltered = sample_questions(REAL, random.Random(0), kinds=["yes_no"], topic="edit")[0]
    altered = sample_questions(EDITED, random.Random(0), kinds=["yes_no"], topic="edit")[0]
    assert unaltered.question == altered.question
    assert {unaltered.answer, altered.answer} == {YES, NO}


def test_without_reasons_an_explanation_states_only_the_origin():
    assert origin(EDITED, "edit") == "Altered. Blur at the upper left."
    assert origin(FAKE) == "AI-generated. Origin: rendered by sd3.5-large from the words: a dog on a beach."
    assert "encoded" in origin(Subject(label="generated", kind="vae", generator="sd3.5"))
    for seed in range(5):
        assert make_question(FAKE, "explain", "fake", random.Random(seed)).answer == origin(FAKE)


def test_an_explanation_has_one_to_three_reasons_by_the_requested_length():
    texts = ["Its noise is weaker.", "Its edges are soft.", "Its colours are pale.", "Its detail is low."]
    reasons = [Reason(text, "noise", "generated", "measured") for text in texts]
    other = Reason("Its noise is stronger.", "noise", "real", "measured")
    subject = replace(FAKE, reasons=(other, *reasons))
    lengths = {}
    for seed in range(40):
        asked = make_question(subject, "explain", "fake", random.Random(seed))
        verdict, *said = re.split(r"(?<=\.) ", asked.answer)
        assert verdict == "AI-generated."
        assert said == texts[: len(said)], "the strongest first, and none for the other label"
        lengths[asked.question] = len(said)
    assert sorted(lengths.values()) == [1, 2, 3]
    assert lengths[EXPLAIN_QUESTION] == 2


def test_an_ordinary_image_says_that_nothing_stands_out():
    assert make_question(replace(REAL, reasons=()), "explain", "fake", random.Random(0)).answer.startswith(
        "Real. Nothing that is measured stands out"
    )


def test_an_edit_is_described_in_words():
    made = {kind: make_question(EDITED, kind, "fake", random.Random(0), topic="edit") for kind in EDIT}
    assert (made["operation"].answer, made["place"].answer) == ("Blur.", "At the upper left.")
    untouched = {kind: make_question(FAKE, kind, "fake", random.Random(0), topic="edit") for kind in EDIT}
    assert (untouched["operation"].answer, untouched["place"].answer) == ("Nothing.", "Nowhere.")
    choice = make_question(EDITED, "multiple_choice", "fake", random.Random(1), topic="edit")
    options = dict(line.split(": ", 1) for line in choice.question.splitlines()[1:5])
    assert options[choice.answer] == "Blur at the upper left."
    assert sum("Blur" in text for text in options.values()) == sum("upper left" in t for t in options.values()) == 2
    assert make_question(EDITED, "operation", "fake", random.Random(0)) is None


def test_unknown_facts_are_not_asked():
    unknown = Subject(label="generated")
    assert sample_questions(unknown, random.Random(0), kinds=["attribution", "multiple_choice"], per_image=2) == []


def test_the_order_of_kinds_does_not_depend_on_which_is_imported_first() -> None:
    code = "import vlm_detect.questions.kinds.{first}; from vlm_detect.questions.kind import KINDS; print(*KINDS)"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code.format(first=first)], capture_output=True, text=True, check=True
        ).stdout
        for first in ("explain", "yes_no", "open")
    }
    assert len(orders) == 1
    assert orders.pop().startswith("yes_no true_false ")
