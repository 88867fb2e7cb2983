import pytest

from vlm_detect.questions.read import first_verdict, parse_answer, parse_choice, parse_verdict

REAL_FAKE = ("Real", "Fake")
YES_NO = ("Yes.", "No.")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("A.", "A"),
        ("a", "A"),
        ("(a)", "A"),
        ("[C]", "C"),
        ("B)", "B"),
        ("**B**", "B"),
        ('"D"', "D"),
        ("Option A", "A"),
        ("option (c)", "C"),
        ("The answer is B.", "B"),
        ("The correct answer is (D) because the hand is odd", "D"),
        ("Answer: C", "C"),
        ("B: The image is real because of the grain.", "B"),
        ("C. It has six fingers", "C"),
        ("B\nThe hand is odd.", "B"),
        ("A \n\nIt is a photo.", "A"),
        ("The answer is A because the hand is odd", "A"),
        ("Option A shows it", "A"),
        ("the second", None),
        ("The answer is a photo of a dog.", None),
        ("Answer: A dog on a beach", None),
        ("A\nB", None),
        ("B or A", None),
        ("A dog", None),
        ("A photo of a cat", None),
        ("A or B", None),
        ("A, B", None),
        ("A. B.", None),
        ("Option A or option B", None),
        ("E", None),
        ("", None),
        ("Because", None),
        ("Apple", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert parse_choice(text, "ABCD") == letter


def test_choice_by_the_text_of_an_option() -> None:
    options = ["A dog.", "A cat.", "A cat."]
    assert parse_choice("a dog", "ABC", options) == "A"
    assert parse_choice("A cat.", "ABC", options) is None  # two options read the same
    assert parse_choice("a dog and more", "ABC", options) is None


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("Real", 0),
        ("real.", 0),
        ("Fake", 1),
        ("fake", 1),
        (" Fake.\n", 1),
        ("The image is AI-generated.", 1),
        ("It is artificially generated", 1),
        ("This is a genuine photo", 0),
        ("not real", 1),
        ("It is not fake.", 0),
        ("unrealistic", None),
        ("It looks unrealistic.", None),
        ("a real-looking scene", None),
        ("It looks real but is fake", None),
        ("I do not think it is real", None),
        ("It isn't real", None),
        ("Yes.", None),
        ("A.", None),
        ("", None),
    ],
)
def test_verdict_words(text: str, candidate: int | None) -> None:
    assert parse_answer(text, REAL_FAKE) == candidate


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("Yes.", 0),
        ("yes", 0),
        ("No", 1),
        ("No, it is a photo.", 1),
        ("Yes! It is.", 0),
        ("Yes\nThe hand is odd.", 0),
        ("\n**No**\n\nIt is a photo.", 1),
        ("Yes\nNo", None),
        ("I say\nyes", None),
        ("", None),
        (" \n", None),
        ("Yes and no", None),
        ("Yesterday", None),
        ("Nothing", None),
        ("I would say yes", None),
        ("Fake.", None),
    ],
)
def test_yes_and_no(text: str, candidate: int | None) -> None:
    assert parse_answer(text, YES_NO) == candidate


def test_verdict_of_a_sentence() -> None:
    assert parse_verdict("AI-generated. It was drawn from the words: a dog.") is True
    assert parse_verdict("Real. A camera took this photo.") is False
    assert parse_verdict("Real. Nothing in it was generated.") is None  # strict: both sides are named


def test_first_verdict_ignores_what_follows() -> None:
    assert first_verdict("The image is artificial because no real dog has six legs.") is True
    assert first_verdict("The image is real; nothing looks generated.") is False
    assert first_verdict("It is a real photo: a dog.") is False
    assert first_verdict("blur at the centre.") is None
    assert first_verdict("An unrealistic scene") is None
