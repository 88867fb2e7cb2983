"""Statements that are true or false; in a benchmark also the yes/no questions, which have two answers as well."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from vlm_detect.questions.ask import (
    EDIT_QUESTIONS,
    EDIT_STATEMENTS,
    FALSE,
    NO,
    STATEMENT_QUESTION,
    STATEMENTS,
    TRUE,
    VERDICT_QUESTIONS,
    YES,
    agrees,
)
from vlm_detect.questions.blocks import ABOUT_EDITS, item_about, with_edits
from vlm_detect.questions.kind import Block, QuestionKind, question
from vlm_detect.records import Pair, Polarity, Question, Subject, Topic

_Polar = tuple[str, Polarity, tuple[str, str]]  # a question, its polarity, its affirming and its denying answer


@question("true_false")
class TrueFalse(QuestionKind):
    varies = True
    in_benchmark = True
    default_size = 1000
    is_verdict = True

    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question:
        answer = TRUE if agrees(subject.label, polarity, topic) else FALSE
        if topic == "edit":
            return Question(self.name, STATEMENT_QUESTION.format(statement=EDIT_STATEMENTS[polarity]), answer)
        return Question(self.name, STATEMENT_QUESTION.format(statement=STATEMENTS[polarity]), answer, polarity)

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """One question about a photo and its twin: the answer is yes for one of them."""
        return with_edits(self._asked(made, "generation", rng), self._asked(edits, "edit", rng), rng)

    def _asked(self, pairs: Sequence[Pair], topic: Topic, rng: random.Random) -> Iterator[Block]:
        """Each round asks a question about every pair; each pair starts at another question."""
        texts = (EDIT_QUESTIONS, EDIT_STATEMENTS) if topic == "edit" else (VERDICT_QUESTIONS, STATEMENTS)
        about = ABOUT_EDITS if topic == "edit" else {}
        questions = _polar(*texts)
        for lap in range(len(questions)):
            for i, pair in rng.sample(list(enumerate(pairs)), len(pairs)):
                text, polarity, (yes, no) = questions[(lap + i) % len(questions)]
                positive = "edited" if topic == "edit" else "generated"
                yield [
                    item_about(
                        source,
                        self.name,
                        text,
                        yes if (source.label == positive) == (polarity == "fake") else no,
                        metadata=about,
                    )
                    for source in pair
                ]


def _polar(questions: Mapping[Polarity, str], statements: Mapping[Polarity, str]) -> list[_Polar]:
    """Questions and statements, in both polarities."""
    asked: list[_Polar] = [(text, polarity, (YES, NO)) for polarity, text in questions.items()]
    stated: list[_Polar] = [
        (STATEMENT_QUESTION.format(statement=text), polarity, (TRUE, FALSE)) for polarity, text in statements.items()
    ]
    return asked + stated
