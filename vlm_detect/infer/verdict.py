"""From scores to a verdict: the log-odds that an image is generated, asked in both polarities."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..data.questions import NO, VERDICT_QUESTIONS, YES
from .engine import Ask, Engine

ASKS = [Ask(question, (YES, NO)) for question in VERDICT_QUESTIONS.values()]
SIGNS = [1 if polarity == "fake" else -1 for polarity in VERDICT_QUESTIONS]  # what "Yes." says about "generated"


def log_odds(engine: Engine, images: Sequence[Image.Image]) -> list[float]:
    """The log-odds of "generated" of each image, in nats.

    log P(the answer that means "generated") - log P(the other), by the full answers' log-probability, averaged over the
    two polarities of the verdict question: a leaning towards "Yes." cancels.
    """
    scores = engine.score(images, [ASKS] * len(images))
    return [
        sum(sign * (yes.logprob - no.logprob) for sign, (yes, no) in zip(SIGNS, asked, strict=True)) / len(SIGNS)
        for asked in scores
    ]
