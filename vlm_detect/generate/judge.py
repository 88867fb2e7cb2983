"""A judge without access to the label: is a statement more likely true of its own image than of the other one?

    judged = judge(asked, [Statement("The hand has six fingers.", twin, photo, place="left")])
    judged[0].margin         # nats, or None where the model gives no log-probabilities
    judged[0].holds(1.0)

A statement is asked as a yes/no question about one image at a time. Its margin is the log-odds of yes for its own image
minus those for the counterpart; without a counterpart, the log-odds for its own image. A model without
log-probabilities has to answer yes for its own image and no for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from vlm_detect.generate.asked_models import Asked
from vlm_detect.infer.endpoint import Prompt
from vlm_detect.questions.ask import NO, YES
from vlm_detect.questions.read import parse_answer

_QUESTION = "Is this true of the image? {statement} Answer with yes or no."
_PLACED = "Look at the {place} of the image. Is this true of it? {statement} Answer with yes or no."
_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Statement:
    """A sentence about `image`; `other` is the counterpart, for which it should be false."""

    text: str
    image: Image.Image
    other: Image.Image | None = None
    place: str | None = None

    @property
    def question(self) -> str:
        return (_PLACED if self.place else _QUESTION).format(statement=self.text, place=self.place)


@dataclass(frozen=True)
class Judgement:
    """`own` and `other`: whether the judge says yes of either image, None without a clear answer.

    `margin` is in nats, if log-probabilities are available for both images.
    """

    own: bool | None = None
    other: bool | None = None
    margin: float | None = None
    alone: bool = False  # there was no counterpart

    @property
    def is_complete(self) -> bool:
        """Whether every question was answered; a refused or unclear answer says nothing about its image."""
        return self.own is not None and (self.alone or self.other is not None)

    def holds(self, least: float) -> bool:
        """Whether the statement is kept, with a minimum margin of `least` nats."""
        if self.margin is not None:
            return self.margin >= least
        return self.own is True and (self.alone or self.other is False)

    def __str__(self) -> str:
        if self.margin is not None:
            return f"{self.margin:.2f} nats"
        said = {True: "yes", False: "no", None: "no clear answer"}
        return said[self.own] if self.alone else f"{said[self.own]} of its image, {said[self.other]} of the other"


def judge(asked: Asked, statements: Sequence[Statement]) -> list[Judgement]:
    """The judgement of `asked` on each statement."""
    questions = [
        (image, statement.question)
        for statement in statements
        for image in (statement.image, statement.other)
        if image is not None
    ]
    answers = iter(asked.log_odds(questions, (YES, NO)) if asked.gives_logprobs else _answers(asked, questions))
    judged = []
    for statement in statements:
        alone = statement.other is None
        own, other = next(answers), None if alone else next(answers)
        judgement = Judgement(_is_yes(own), _is_yes(other), alone=alone)
        if asked.gives_logprobs and judgement.is_complete:
            judgement = replace(judgement, margin=(own or 0.0) - (other or 0.0))
        judged.append(judgement)
    return judged


def _is_yes(odds: float | None) -> bool | None:
    return None if odds is None else odds > 0


def _answers(asked: Asked, questions: Sequence[tuple[Image.Image, str]]) -> list[float | None]:
    """1 for yes, -1 for no, None for neither."""
    replies = asked.answer([Prompt((image,), question) for image, question in questions], _TOKENS)
    said = [parse_answer(reply.text, (YES, NO)) if not reply.failure else None for reply in replies]
    return [None if index is None else 1.0 - 2.0 * index for index in said]
