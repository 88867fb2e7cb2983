import pytest

from vlm_detect.questions.ask import (
    EDIT_QUESTION,
    EDIT_QUESTIONS,
    FAKE_QUESTION,
    REAL_QUESTION,
    STATEMENT_QUESTION,
    STATEMENTS,
)
from vlm_detect.questions.kind import generator_of, is_fake, prompts_of
from vlm_detect.questions.prompts import mirrored, split_options, with_options
from vlm_detect.records import Item

TEOSCARDOV = (
    "Is this image real or artificially generated? Explain your reasoning. \nA: The image is real because of A: b. \n"
    "B: The image is fake. \nC: The image is genuine. \nD: The image is synthetic. \nAnswer with the letter."
)


def item(question: str, ground_truth: str, options: tuple[str, ...] = (), kind: str = "true_false", **metadata) -> Item:
    return Item("i", kind, ("x.png",), question, ground_truth, options, metadata)


@pytest.mark.parametrize(("truth", "fake"), [("Yes.", True), ("No.", False)])
def test_yes_no_in_both_polarities(truth: str, fake: bool) -> None:
    first, second = prompts_of(item(FAKE_QUESTION, truth))
    assert (first.polarity, second.polarity) == ("fake", "real")
    assert (first.question, second.question) == (FAKE_QUESTION, REAL_QUESTION)
    assert first.candidates == second.candidates == ("Yes.", "No.")
    assert first.fake == (True, False)
    assert second.fake == (False, True)
    for prompt in (first, second):
        assert prompt.fake[prompt.right] is fake
    assert is_fake(item(FAKE_QUESTION, truth)) is fake


def test_asked_for_the_photo_first() -> None:
    first, second = prompts_of(item(REAL_QUESTION, "Yes."))
    assert (first.polarity, second.polarity) == ("real", "fake")
    assert is_fake(item(REAL_QUESTION, "Yes.")) is False


def test_real_or_fake_swaps_the_order_and_keeps_the_words() -> None:
    question = "Is this image real or artificially generated? Just answer with Real or Fake."
    first, second = prompts_of(item(question, "Fake"))
    assert second.question == "Is this image artificially generated or real? Just answer with Fake or Real."
    assert (first.polarity, second.polarity) == ("real", "fake")
    assert first.candidates == ("Real", "Fake")
    assert first.right == second.right == 1
    assert mirrored(second.question) == question


def test_statements() -> None:
    question = STATEMENT_QUESTION.format(statement=STATEMENTS["fake"])
    first, second = prompts_of(item(question, "True."))
    assert first.candidates == ("True.", "False.")
    assert second.question == STATEMENT_QUESTION.format(statement=STATEMENTS["real"])
    assert second.right == 1
    assert is_fake(item(question, "True.")) is True


def test_questions_about_edits_carry_no_verdict() -> None:
    first, second = prompts_of(item(EDIT_QUESTION, "Yes.", label="edited"))
    assert second.question == EDIT_QUESTIONS["real"]
    assert second.right == 1
    assert first.fake == second.fake == (None, None)
    assert is_fake(item(EDIT_QUESTION, "No.", label="real")) is None


def test_unknown_yes_no_question_takes_its_polarity_from_the_label() -> None:
    (only,) = prompts_of(item("Was a camera used?", "no", generator="glide"))
    assert only.candidates == ("yes", "no")
    assert only.polarity == "real"
    assert only.fake == (False, True)
    (unlabelled,) = prompts_of(item("Is there a dog?", "yes"))
    assert unlabelled.fake == (None, None)


def test_options_inside_the_question_are_rotated_in_place() -> None:
    options = split_options(TEOSCARDOV)
    assert options == (
        "The image is real because of A: b.",
        "The image is fake.",
        "The image is genuine.",
        "The image is synthetic.",
    )
    assert with_options(TEOSCARDOV, options) == TEOSCARDOV
    prompts = prompts_of(item(TEOSCARDOV, "B", options, "multiple_choice"))
    assert [prompt.rotation for prompt in prompts] == [0, 1, 2, 3]
    assert [prompt.candidates[prompt.right] for prompt in prompts] == ["B", "A", "D", "C"]
    for prompt in prompts:
        assert prompt.options[prompt.right] == "The image is fake."
        assert f"\n{prompt.candidates[prompt.right]}: The image is fake. \n" in prompt.question
        assert prompt.question.endswith("Answer with the letter.")
    assert prompts[0].fake == (False, True, False, True)


def test_every_option_appears_once_under_every_letter() -> None:
    prompts = prompts_of(item("Which?", "b", ("a", "b", "c"), "multiple_choice"))
    for option in "abc":
        assert sorted(prompt.options.index(option) for prompt in prompts) == [0, 1, 2]
    assert prompts[0].right == 1


def test_attribution_without_options_chooses_among_all_names() -> None:
    (prompt,) = prompts_of(item("What made this image?", "sd15.", (), "attribution"), ["A camera.", "glide."])
    assert prompt.candidates == ("A camera.", "glide.", "sd15.")
    assert prompt.fake == (False, True, True)
    assert prompt.right == 2


@pytest.mark.parametrize("name", ["big gan", "Big_GAN", "big-gan"])
def test_generators_have_one_spelling(name: str) -> None:
    assert generator_of(item(FAKE_QUESTION, "Yes.", generator=name)) == "big_gan"


def test_a_ground_truth_outside_the_options_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 options"):
        prompts_of(item("Which?", "C", ("a", "b"), "multiple_choice"))
