"""Sample training questions for one image: kinds, polarities and answers.

    subject = Subject(label="generated", kind="caption", generator="sd3.5-large", caption="a dog on a beach")
    sample_questions(subject, rng, kinds=["yes_no", "multiple_choice"], per_image=2, other_captions=["a red barn"])

Every answer, reasons included, follows from the known facts about the image. Edited images only get topic "edit".
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Polarity, Question, Subject, Topic


def sample_questions(
    subject: Subject,
    rng: random.Random,
    *,
    kinds: Sequence[str] = ("yes_no",),
    per_image: int = 1,
    topic: Topic = "generation",
    other_captions: Sequence[str] = (),
) -> list[Question]:
    """Sample `per_image` different questions about `subject`.

    The kinds are taken in turn from a random start; if a kind cannot be asked (no caption, no known
    generator) or repeats, the next is taken, so fewer questions than requested may be returned. The random numbers from
    `rng` depend on the arguments and not on the label: both members of a pair, given equal generators, get the same
    kinds and polarities.
    """
    start, flip, seed = rng.randrange(len(kinds)), rng.random() < 0.5, rng.random()
    polarities: tuple[Polarity, Polarity] = ("real", "fake") if flip else ("fake", "real")
    sampled: list[Question] = []
    for lap, polarity in enumerate(polarities):
        for i in range(len(kinds)):
            kind = kinds[(start + i) % len(kinds)]
            if lap and not KINDS[kind].varies:
                continue
            own_rng = random.Random(f"{seed}:{lap}:{kind}")
            question = make_question(subject, kind, polarity, own_rng, topic=topic, other_captions=other_captions)
            if question and len(sampled) < per_image:
                sampled.append(question)
    return sampled


def make_question(
    subject: Subject,
    kind: str,
    polarity: Polarity,
    rng: random.Random,
    *,
    topic: Topic = "generation",
    other_captions: Sequence[str] = (),
) -> Question | None:
    """One question of `kind` about `subject`, or None if the known facts about the image do not answer it."""
    if topic == "generation" and subject.label == "edited":
        return None
    return KINDS[kind].ask(subject, polarity, rng, topic=topic, other_captions=other_captions)
