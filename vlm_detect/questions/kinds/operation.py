"""What was done to a part of an image. For training, on edited images and their originals."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.kind import QuestionKind, question
from vlm_detect.records import Polarity, Question, Subject, Topic

OPERATION_QUESTION = "What was done to a part of this image?"
NOTHING = "Nothing."


@question("operation")
class Operation(QuestionKind):
    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question | None:
        if topic != "edit":
            return None
        if subject.label != "edited":
            return Question(self.name, OPERATION_QUESTION, NOTHING)
        done = subject.operation
        return Question(self.name, OPERATION_QUESTION, f"{done[0].upper()}{done[1:]}.") if done else None
