"""The Bi-LoRA pair: "Is this image AI-generated?" and "Is this a real photo?", answered yes or no. For training.

In a benchmark these questions are items of kind `true_false`, as the published files have them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.ask import EDIT_QUESTIONS, NO, VERDICT_QUESTIONS, YES, agrees
from vlm_detect.questions.kind import QuestionKind, question
from vlm_detect.records import Polarity, Question, Subject, Topic


@question("yes_no")
class YesNo(QuestionKind):
    varies = True

    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question:
        answer = YES if agrees(subject.label, polarity, topic) else NO
        if topic == "edit":
            return Question(self.name, EDIT_QUESTIONS[polarity], answer)
        return Question(self.name, VERDICT_QUESTIONS[polarity], answer, polarity)
