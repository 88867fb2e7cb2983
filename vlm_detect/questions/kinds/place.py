"""Where an image was altered. For training, on edited images and their originals."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.kind import QuestionKind, question
from vlm_detect.records import Polarity, Question, Subject, Topic

PLACE_QUESTION = "Where was this image altered?"
NOWHERE = "Nowhere."


@question("place")
class Place(QuestionKind):
    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question | None:
        if topic != "edit":
            return None
        if subject.label != "edited":
            return Question(self.name, PLACE_QUESTION, NOWHERE)
        return Question(self.name, PLACE_QUESTION, f"At the {subject.place}.") if subject.place else None
