"""From scores to a verdict: the log-odds that an image is generated, asked in both polarities and asked freely.

The verdict uses only the two polarities. The free question, "Is this image real or AI-generated? Explain your answer.",
is also scored, by how its answer would begin, to detect a model whose explanations disagree with its verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import Image

from vlm_detect.infer.engine import Ask, CandidateScore, Engine
from vlm_detect.questions.ask import (
    EDIT_QUESTIONS,
    EXPLAIN_QUESTION,
    FAKE_QUESTION,
    NO,
    REAL_QUESTION,
    VERDICT_QUESTIONS,
    YES,
)
from vlm_detect.questions.read import parse_verdict
from vlm_detect.records import Topic

Label = Literal["real", "generated", "unsure"]

# The two-way questions of a topic, in both polarities; the verdict's are those of "generation".
TOPIC_ASKS: dict[Topic, list[Ask]] = {
    "generation": [Ask(question, (YES, NO)) for question in VERDICT_QUESTIONS.values()],
    "edit": [Ask(question, (YES, NO)) for question in EDIT_QUESTIONS.values()],
}
ASKS = TOPIC_ASKS["generation"]
SIGNS = [1 if polarity == "fake" else -1 for polarity in VERDICT_QUESTIONS]  # what "Yes." says about "generated"
BEGINNINGS = {"generated": "AI-generated.", "real": "Real."}  # beginnings of explanations, as trained
AGAINST_VERDICT = "Its explanation states the other verdict"
FREE_ASK = Ask(EXPLAIN_QUESTION, (BEGINNINGS["generated"], BEGINNINGS["real"]), whole=False)


class Odds(NamedTuple):
    """Log-odds of "generated" in nats: by each verdict question, in the order of `ASKS`, and by the free question."""

    polarities: tuple[float, ...]
    free: float

    @property
    def mean(self) -> float:
        """The verdict's log-odds: a bias towards "Yes." cancels out."""
        return sum(self.polarities) / len(self.polarities)


def log_odds(engine: Engine, images: Sequence[Image.Image], topic: Topic = "generation") -> list[float]:
    """The log-odds of "generated" (of "altered" where the `topic` is edits) of each image, in nats.

    log P(the answer that means "generated") - log P(the other), by the full answers' log-probability, averaged over the
    two polarities of the verdict question.
    """
    return [mean_odds(asked) for asked in engine.score(images, [TOPIC_ASKS[topic]] * len(images))]


def read_odds(engine: Engine, images: Sequence[Image.Image]) -> list[Odds]:
    """As `log_odds`, for each question separately, with the free question, in the same forward pass."""
    scores = engine.score(images, [[*ASKS, FREE_ASK]] * len(images))
    return [Odds(_signed(asked[:-1]), asked[-1][0].logprob - asked[-1][1].logprob) for asked in scores]


def mean_odds(asked: Sequence[Sequence[CandidateScore]]) -> float:
    """The mean over two-way questions in the order of `VERDICT_QUESTIONS`, "Yes." before "No."."""
    return sum(_signed(asked)) / len(SIGNS)


def _signed(asked: Sequence[Sequence[CandidateScore]]) -> tuple[float, ...]:
    return tuple(sign * (yes.logprob - no.logprob) for sign, (yes, no) in zip(SIGNS, asked, strict=True))


def contradictions(label: Label, odds: Odds) -> tuple[str, ...]:
    """Contradictions between the model's answers, or with its verdict, one sentence each."""
    found = []
    fake, real = odds.polarities
    if fake * real < 0:
        word = "Yes" if fake > 0 else "No"
        found.append(f'It says {word} both to "{FAKE_QUESTION}" and to "{REAL_QUESTION}"')
    if label != "unsure" and (odds.free > 0) != (label == "generated"):
        found.append(f"Asked freely, before any verdict, it says {'generated' if odds.free > 0 else 'real'}")
    return tuple(found)


def in_band(low: float, high: float) -> str:
    """Why a verdict between these p_fake is "unsure"."""
    return f"p_fake lies in the unsure band, {low:.2f} to {high:.2f}"


def contradicts(label: Label, explanation: str) -> bool:
    """Whether an explanation states the opposite of the verdict it was given under."""
    if label == "unsure":
        return False
    reasons = explanation.removeprefix(BEGINNINGS[label])
    said = parse_verdict(reasons)
    return said is not None and said != (label == "generated")
