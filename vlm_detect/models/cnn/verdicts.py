"""From a verdict head's logits to one log-odds per image: which classes make up the positive class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VERDICT, OBJECT = "verdict", "object"
# The pair of classes that a task's score compares; the first is the positive class.
COMPARED_CLASSES: dict[str, tuple[str, str]] = {
    "real_fake": ("generated", "real"),
    "generator": ("generated", "real"),
    "real_edited": ("edited", "real"),
    "fake_edited": ("edited", "generated"),
    "three_way": ("generated", "real"),
}


class Sides(NamedTuple):
    """The indices in a verdict head of the positive classes, and of the negative ones."""

    positive: list[int]
    other: int


def sides_of(classes: list[str], task: str) -> Sides:
    """For "generator" all generators together are compared with "real"."""
    positive, other = COMPARED_CLASSES[task]
    against = classes.index(other)
    places = [classes.index(positive)] if positive in classes else [i for i in range(len(classes)) if i != against]
    return Sides(places, against)


def odds_of(logits: np.ndarray, classes: list[str], task: str) -> np.ndarray:
    """The score of each image: log-odds (N,) of the positive class, in nats; `logits` are (N, L)."""
    logits = logits.astype(np.float64)  # single precision would round the probabilities of sure verdicts
    if logits.shape[1] == 1:
        return logits[:, 0]
    sides = sides_of(classes, task)
    return np.logaddexp.reduce(logits[:, sides.positive], axis=1) - logits[:, sides.other]
