"""The forms of a benchmark's prompts: both polarities of a verdict, all rotations of the options.

    polarities(item)          # the item as written, then the same with the opposite polarity
    rotations(item, says)     # every option once under every letter

The first prompt is the item as written, which free generation answers, as in published scripts. Over all prompts a
model that always says "Yes." or "B" gains nothing. The kind (`kind.py`) determines the form of an item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlm_detect.questions.ask import (
    CHOICE_INSTRUCTION,
    EDIT_EXPLAIN_QUESTION,
    EDIT_QUESTIONS,
    EDIT_STATEMENTS,
    LETTERS,
    NO,
    STATEMENT_QUESTION,
    STATEMENTS,
    VERDICT_QUESTIONS,
    YES,
)
from vlm_detect.records import Item, Label, Polarity, Topic, is_real_name, label_named

_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-H])\)?[:.)][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_WORD_PAIRS = (("yes", "no"), ("true", "false"), ("real", "fake"))  # in the order of scoring
# "real or artificially generated", "Real or Fake": the order of the two words is the polarity of such a question.
_VERDICT_WORD = r"(real|fake|(?:ai-|artificially )?generated)"
_EITHER = re.compile(rf"\b{_VERDICT_WORD}( or |/){_VERDICT_WORD}\b", re.IGNORECASE)


def _stated(statements: Mapping[Polarity, str]) -> dict[Polarity, str]:
    return {polarity: STATEMENT_QUESTION.format(statement=text) for polarity, text in statements.items()}


# Pairs of questions with opposite polarity; those about edits ask for no verdict on the image.
_VERDICT_PAIRS = (VERDICT_QUESTIONS, _stated(STATEMENTS))
_EDIT_PAIRS = (EDIT_QUESTIONS, _stated(EDIT_STATEMENTS))
_OPPOSITE: dict[Polarity, Polarity] = {"fake": "real", "real": "fake"}


@dataclass(frozen=True)
class Prompt:
    """One question with its candidate answers.

    `options` are shown in this order; `candidates` are the answers that are scored: letters if the options are
    lettered, else the options. `right` indexes both; `fake` is, for each, whether it calls the image generated (None
    if it does not say).
    """

    item: Item
    polarity: str
    rotation: int
    question: str
    options: tuple[str, ...]
    candidates: tuple[str, ...]
    right: int | None
    fake: tuple[bool | None, ...]

    @property
    def lettered(self) -> bool:
        return bool(self.item.options)

    @property
    def ground_truth(self) -> str:
        return self.item.ground_truth if self.right is None else self.candidates[self.right]


def topic_of(item: Item) -> Topic:
    """Whether the question is about generation or about a local edit."""
    about_edits = item.metadata.get("asked") == "edited" or _label_of(item) == "edited"
    asks_for_edits = item.question == EDIT_EXPLAIN_QUESTION or _known_pair(item.question)[0] in _EDIT_PAIRS
    return "edit" if about_edits or asks_for_edits else "generation"


def is_instructed(item: Item) -> bool:
    """Whether the edit that the question is about follows an instruction."""
    return bool(item.metadata.get("instruction")) or item.metadata.get("twin_kind") == "instruct"


def row_of(kind: str, topic: Topic, *, instructed: bool) -> str:
    """The row of a table with a kind of question: edits, and edits by instruction, have rows of their own."""
    if topic != "edit":
        return kind
    return f"instruct_{kind}" if instructed else f"edit_{kind}"


def plain_name(name: str) -> str:
    return re.sub(r"[\s_.\-/]+", "_", name.strip().lower()).strip("_")


def split_options(question: str) -> tuple[str, ...]:
    """The options within a question's text, as lines "A: ...", or () if there are fewer than two."""
    lines = _OPTION_LINE.findall(question)
    letters = "".join(letter for letter, _ in lines)
    return tuple(text for _, text in lines) if len(lines) > 1 and LETTERS.startswith(letters) else ()


def with_options(question: str, options: Sequence[str]) -> str:
    """`question` followed by `options`, which replace options within its text."""
    if split_options(question):
        texts = iter(options)
        return _OPTION_LINE.sub(lambda match: match[0].replace(match[2], next(texts), 1), question)
    lines = [f"{letter}: {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, CHOICE_INSTRUCTION])


def mirrored(question: str) -> str | None:
    """The question with the opposite polarity, or None if it is not known.

    "Is this image AI-generated?" <-> "Is this a real photo?"; "Real or Fake" <-> "Fake or Real".
    """
    pair, polarity = _known_pair(question)
    if pair and polarity:
        return pair[_OPPOSITE[polarity]]
    swapped = _EITHER.sub(r"\3\2\1", question)
    return swapped if swapped != question else None


def rotations(item: Item, says_fake: Callable[[str], bool | None]) -> list[Prompt]:
    """One prompt per option; `says_fake` returns the verdict that an option states.

    Raises:
        ValueError: if the ground truth is none of the options.
    """
    n = len(item.options)
    letters = tuple(LETTERS[:n])
    truth = right_option(item)
    prompts = []
    for rotation in range(n):
        order = [(position + rotation) % n for position in range(n)]
        options = tuple(item.options[i] for i in order)
        fake = tuple(says_fake(option) for option in options)
        question = with_options(item.question, options)
        prompts.append(Prompt(item, "", rotation, question, options, letters, order.index(truth), fake))
    return prompts


def right_option(item: Item) -> int:
    """The index of the right option: `ground_truth` is its letter, or its text. ValueError if it is neither."""
    answer = item.ground_truth.strip()
    if answer in item.options:
        return item.options.index(answer)
    letter = answer.strip("().: ").upper()
    if len(letter) == 1 and letter in LETTERS[: len(item.options)]:
        return LETTERS.index(letter)
    raise ValueError(f"ground_truth {answer!r} is none of the {len(item.options)} options")


def verdict_prompts(item: Item) -> list[Prompt]:
    """The verdict questions about an open item's image, with which its free answer is compared."""
    questions = EDIT_QUESTIONS if topic_of(item) == "edit" else VERDICT_QUESTIONS
    fake = item.metadata.get("label") == "edited" if topic_of(item) == "edit" else labelled_fake(item)
    prompts = []
    for polarity, question in questions.items():
        right = None if fake is None else int(fake != (polarity == "fake"))
        says = (polarity == "fake", polarity != "fake") if topic_of(item) == "generation" else (None, None)
        prompts.append(Prompt(item, polarity, 0, question, (YES, NO), (YES, NO), right, says))
    return prompts


def polarities(item: Item) -> list[Prompt]:
    """The two-way question of an item, and its opposite if that is known.

    Raises:
        ValueError: if the ground truth is no answer to a two-way question.
    """
    candidates = answer_pair(item.ground_truth)
    if candidates is None:
        raise ValueError(f"ground_truth {item.ground_truth!r} is none of Yes/No, True/False, Real/Fake")
    right = [_plain(candidate) for candidate in candidates].index(_plain(item.ground_truth))
    polarity: Polarity | None
    if _plain(candidates[0]) == "real":
        named = _EITHER.search(item.question)
        polarity = "fake" if named and _plain(named[1]) != "real" else "real"
        fake: tuple[bool | None, ...] = (False, True)
        turned = (right, fake)  # the words keep their meaning, only their order changes
    else:
        pair, polarity = _known_pair(item.question)
        if pair is None and (labelled := labelled_fake(item)) is not None:
            polarity = "fake" if labelled == (right == 0) else "real"
        # The first candidate affirms the question: "Yes." to "is it AI-generated?" says fake.
        verdict = None if pair in _EDIT_PAIRS or polarity is None else polarity == "fake"
        fake = (None, None) if verdict is None else (verdict, not verdict)
        turned = (1 - right, (fake[1], fake[0]))
    prompts = [Prompt(item, polarity or "", 0, item.question, candidates, candidates, right, fake)]
    if polarity and (other := mirrored(item.question)):
        prompts.append(Prompt(item, _OPPOSITE[polarity], 0, other, candidates, candidates, *turned))
    return prompts


def answer_pair(ground_truth: str) -> tuple[str, str] | None:
    """Both answers of a two-way question, spelled like the ground truth: "No." -> ("Yes.", "No.")."""
    word = _plain(ground_truth)
    for pair in _WORD_PAIRS:
        if word in pair:
            end = "." if ground_truth.strip().endswith(".") else ""
            case = str.capitalize if ground_truth.strip()[:1].isupper() else str.lower
            return case(pair[0]) + end, case(pair[1]) + end
    return None


def _known_pair(question: str) -> tuple[Mapping[Polarity, str] | None, Polarity | None]:
    """The pair of questions that `question` belongs to, and which of the two it is."""
    for pair in (*_VERDICT_PAIRS, *_EDIT_PAIRS):
        for polarity, text in pair.items():
            if question.strip() == text:
                return pair, polarity
    return None, None


def labelled_fake(item: Item) -> bool | None:
    """Whether the item's own label, or else its generator, says that the image is generated."""
    if item.metadata.get("label"):
        return {"real": False, "generated": True}.get(str(_label_of(item)))
    return not is_real_name(str(item.metadata["generator"] or "")) if "generator" in item.metadata else None


def _label_of(item: Item) -> Label | None:
    return label_named(str(item.metadata.get("label", "")))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
