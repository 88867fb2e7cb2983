import pytest

from vlm_detect.benchmark.explanations import (
    claimed_faults,
    contradicts_itself,
    explanations,
    names,
    operation_words,
    read_explanations,
    rouge_l,
)
from vlm_detect.benchmark.score import generated_result, scored_result
from vlm_detect.images.edits import EDITS
from vlm_detect.places import PLACE_PATTERNS, PLACES
from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION
from vlm_detect.questions.kind import prompts_of
from vlm_detect.questions.kinds.explain import explanation
from vlm_detect.questions.read import parse_explanation
from vlm_detect.records import Item, Subject


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Real. Origin: a camera.", False),
        ("AI-generated. Origin: rendered from the words: a real cat.", True),
        ("The fur looks soft.\nVerdict: fake", True),
        ("Descriptions: a fake-looking sky. Judgement: real.", False),
        ("This image is not AI-generated.", False),
        ("A cat sits on a mat.", None),
        ("It could be real or fake.", None),
        ("It looks unrealistic.", None),
        ("", None),
    ],
)
def test_verdict_of_an_explanation(text: str, verdict: bool | None) -> None:
    assert parse_explanation(text) is verdict


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("Altered. Blur at the upper left.", True),
        ("Not altered. No part of it was changed afterwards.", False),
        ("The picture was manipulated in the centre.", True),
        ("It is unaltered.", False),
        ("It is a real photo.", None),
    ],
)
def test_verdict_about_an_edit(text: str, altered: bool | None) -> None:
    assert parse_explanation(text, "edit") is altered


def test_trained_answers_are_parsed_back() -> None:
    subjects = [
        Subject("real"),
        Subject("generated", "caption", "sd35", "a dog"),
        Subject("generated", "vae", "sd35"),
        Subject("generated"),
    ]
    for subject in subjects:
        assert parse_explanation(explanation(subject)) is (subject.label == "generated")
    edit = Subject("edited", edit={"operation": "copy_move", "box": [0, 0, 9, 9]}, size=(90, 90))
    text = explanation(edit, "edit")
    assert parse_explanation(text, "edit") is True
    assert names(text, "copy move", operation_words())
    assert names(text, "upper left", PLACE_PATTERNS)
    assert parse_explanation(explanation(Subject("real"), "edit"), "edit") is False


def test_every_explained_edit_is_parsed_back() -> None:
    for operation in EDITS.own:
        for i, place in enumerate(PLACES):
            x, y = 30 * (i % 3), 30 * (i // 3)
            edit = {"operation": operation, "box": [x, y, x + 30, y + 30]}
            text = explanation(Subject("edited", edit=edit, size=(90, 90)), "edit")
            assert names(text, operation.replace("_", " "), operation_words())
            assert [name for name in PLACES if names(text, name, PLACE_PATTERNS)] == [place]
    assert names("It was altered at the top centre.", "top", PLACE_PATTERNS)
    assert names("Something in the middle was blurred.", "centre", PLACE_PATTERNS)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("Fake. The hand has six fingers, and the text is garbled.", 2),
        ("Real. There are no distortions, and the light is natural.", 0),
        ("Real. It is free of artifacts.", 0),
        ("Fake. There is no dog, but the cat is deformed.", 1),
        ("Fake. Distorted face, distorted hands.", 1),  # one kind of fault
        ("Real. The background is blurry.", 0),
    ],
)
def test_claimed_faults(text: str, faults: int) -> None:
    assert claimed_faults(text) == faults


def test_naming_all_operations_counts_as_none() -> None:
    assert names("Something was blurred in the top-left corner.", "blur", operation_words())
    assert names("Something was blurred in the top-left corner.", "upper left", PLACE_PATTERNS)
    assert not names("Blurred, spliced or removed.", "blur", operation_words())
    assert not names("At the upper left, the upper right or the middle.", "upper left", PLACE_PATTERNS)
    assert not names("It was not blurred.", "blur", operation_words())
    assert names("A mosaic was laid over it.", "mosaic", operation_words())  # an operation without a word list


def test_contradictions() -> None:
    assert contradicts_itself("Real. The face is warped.", False, "generation", 1)
    assert contradicts_itself("Fake. Everything speaks for it. It is a genuine picture.", True, "generation", 0)
    assert not contradicts_itself("Fake. The face is warped.", True, "generation", 1)
    assert not contradicts_itself("A cat.", None, "generation", 0)


def open_item(id_: str, label: str, question: str = EXPLAIN_QUESTION, **metadata) -> Item:
    facts = {"label": label, "generator": "real" if label == "real" else "sd35", "group": id_, **metadata}
    return Item(id_, "open", (f"{id_}.png",), question, "A reference of some words.", (), facts)


def test_figures() -> None:
    edit_words = {"operation": "blur", "place": "upper left"}
    items = [
        open_item("a", "real"),
        open_item("b", "real"),
        open_item("c", "generated"),
        open_item("d", "edited", EDIT_EXPLAIN_QUESTION, edit=edit_words, asked="edited"),
        open_item("e", "edited", EDIT_EXPLAIN_QUESTION, edit=edit_words, asked="edited"),
    ]
    answers = [
        "Real. Nothing is wrong with it.",
        "Fake. The hands are deformed.",  # the faults of a photo are invented
        "A reference of some words.",
        "Altered. Blur at the upper left.",
        "Altered. Blur at the lower left.",
    ]
    results = []
    for item, answer in zip(items, answers, strict=True):
        first, *verdicts = prompts_of(item)
        results.append(generated_result(first, answer))
        # Scored, everything is called generated (altered).
        for prompt in verdicts:
            yes = 0.0 if prompt.polarity == "fake" else -9.0
            results.append(scored_result(prompt, [yes, -9.0 - yes], [1, 1]))
    found = explanations(read_explanations(items, results), resamples=50)
    assert found is not None
    assert (found["n"], found["unparsed"]) == (5, 1)
    assert found["verdict_accuracy"]["share"] == 0.6
    assert found["agreement"]["share"] == 0.6  # b, d and e
    assert (found["faults_on_photos"]["n"], found["faults_on_photos"]["share"]) == (2, 0.5)
    assert found["faults_on_generated"]["share"] == 0
    shares = {name: figure["share"] for name, figure in found["edits"].items()}
    assert shares == {"operation_named": 1, "place_named": 0.5, "both_named": 0.5}
    assert 0 < found["rouge_l"] < 1
    assert found["verdict_accuracy"]["ci95"][0] < 0.6 < found["verdict_accuracy"]["ci95"][1]
    assert explanations(read_explanations(items, [])) is None


def test_an_edit_described_in_another_form_is_not_judged() -> None:
    items = [
        open_item("a", "edited", EDIT_EXPLAIN_QUESTION, edit=edit, asked="edited") for edit in ("blur", {"box": []})
    ]
    for item in items:
        results = [generated_result(prompts_of(item)[0], "Altered. Blur.")]
        found = explanations(read_explanations([item], results), resamples=20)
        assert found is not None
        assert "edits" not in found


def test_reference_scores() -> None:
    assert rouge_l([("a cat on a mat", "a cat on a mat")]) == 1
    assert rouge_l([("Fake", "Fake")]) is None  # a verdict is no reference
