"""A verdict and its reason in free words, which say only what is known to have been done. For training.

In a benchmark these questions are items of kind `open`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION
from vlm_detect.questions.kind import QuestionKind, question
from vlm_detect.records import Polarity, Question, Subject, Topic

UNALTERED = "Not altered. No part of it was changed afterwards."


@question("explain")
class Explain(QuestionKind):
    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question:
        text = EDIT_EXPLAIN_QUESTION if topic == "edit" else EXPLAIN_QUESTION
        return Question(self.name, text, explanation(subject, topic))


def explanation(subject: Subject, topic: Topic = "generation") -> str:
    """A verdict and its reason in one or two sentences."""
    if topic == "edit":
        if subject.label != "edited":
            return UNALTERED
        done = subject.operation
        if not done:
            return "Altered. A part of it was changed afterwards."
        return f"Altered. {done[0].upper()}{done[1:]}{f' at the {subject.place}' if subject.place else ''}."
    if subject.label == "real":
        return "Real. A camera took this photo, and nothing in it was generated."
    by = f" by {subject.generator}" if subject.generator else ""
    if subject.kind == "vae":
        return f"AI-generated. It is a photo that was encoded and painted anew{by}."
    if subject.caption:
        return f"AI-generated. It was drawn{by} from the words: {subject.caption.rstrip('.')}."
    return f"AI-generated. It was drawn{by}."
