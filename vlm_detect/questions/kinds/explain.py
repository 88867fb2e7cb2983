"""A verdict and its reasons, in free text. For training.

An answer is the verdict and then one to three of the image's reasons (`vlm-detect add-reasons`), the strongest first.
Without reasons in the dataset the answer gives the origin: what made the image follows from its label and is marked as
"Origin", because the pixels need not show it.

In a benchmark these questions are items of kind `open`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION
from vlm_detect.questions.kind import QuestionKind, question
from vlm_detect.records import Label, Polarity, Question, Subject, Topic

UNALTERED = "Not altered. No part of it was changed afterwards."
VERDICTS: dict[Label, str] = {"real": "Real.", "generated": "AI-generated.", "edited": "Altered."}
NOTHING_STANDS_OUT = "Nothing that is measured stands out among photos of this size."

# The number of reasons in an answer, by the length that the question asks for.
LENGTHS = {"in one sentence": 1, "": 2, "in detail": 3}


@question("explain")
class Explain(QuestionKind):
    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question:
        if not _has_reasons(subject, topic):
            return Question(self.name, explain_question(topic), origin(subject, topic))
        length = rng.choice(list(LENGTHS))
        return Question(self.name, explain_question(topic, length), explanation(subject, topic, LENGTHS[length]))


def explain_question(topic: Topic = "generation", length: str = "") -> str:
    """The question that asks for an explanation of one of the `LENGTHS`."""
    text = EDIT_EXPLAIN_QUESTION if topic == "edit" else EXPLAIN_QUESTION
    return f"{text[:-1]} {length}." if length else text


def _has_reasons(subject: Subject, topic: Topic) -> bool:
    """Whether reasons can answer: an unedited image has no reasons for being unedited."""
    return subject.reasons is not None and (topic == "generation" or subject.label == "edited")


def explanation(subject: Subject, topic: Topic = "generation", most: int = LENGTHS[""]) -> str:
    """The verdict, then at most `most` of the reasons that support it; the origin where the dataset has no reasons."""
    if not _has_reasons(subject, topic):
        return origin(subject, topic)
    reasons = [reason.text for reason in subject.reasons or () if reason.supports == subject.label][:most]
    return " ".join([VERDICTS[subject.label], *(reasons or [NOTHING_STANDS_OUT])])


def origin(subject: Subject, topic: Topic = "generation") -> str:
    """The verdict, then the known origin of the image, marked as such."""
    if topic == "edit":
        if subject.label != "edited":
            return UNALTERED
        if subject.instruction:
            return f"Altered. By the instruction: {subject.instruction.rstrip('.')}."
        done = subject.operation
        if not done:
            return "Altered. A part of it was changed afterwards."
        return f"Altered. {done[0].upper()}{done[1:]}{f' at the {subject.place}' if subject.place else ''}."
    if subject.label == "real":
        return "Real. Origin: a camera."
    by = f" by {subject.generator}" if subject.generator else ""
    if subject.kind == "vae":
        return f"AI-generated. Origin: a photo, encoded and decoded{by}."
    if subject.caption:
        return f"AI-generated. Origin: rendered{by} from the words: {subject.caption.rstrip('.')}."
    return f"AI-generated. Origin: rendered{by}."
