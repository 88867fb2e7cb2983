"""From a verdict head's logits to one log-odds per image: which classes stand for the positive class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VERDICT, OBJECT = "verdict", "object"
# Which pair of classes a task's one score sets against each other, the first being what an image is suspected of.
SUSPECTED: dict[str, tuple[str, str]] = {
    "real_fake": ("generated", "real"),
    "generator": ("generated", "real"),
    "real_edited": ("edited", "real"),
    "fake_edited": ("edited", "generated"),
    "three_way": ("generated", "real"),
}


class Sides(NamedTuple):
    """The places in a verdict head of what an image is suspected of, and of what stands against it."""

    suspected: list[int]
    other: int


def sides_of(classes: list[str], task: str) -> Sides:
    """Under "generator" all generators together stand against "real"."""
    suspected, other = SUSPECTED[task]
    against = classes.index(other)
    places = [classes.index(suspected)] if suspected in classes else [i for i in range(len(classes)) if i != against]
    return Sides(places, against)


def odds_of(logits: np.ndarray, classes: list[str], task: str) -> np.ndarray:
    """The one score of each image: log-odds (N,), in nats, of what it is suspected of; `logits` are (N, L)."""
    logits = logits.astype(np.float64)  # single precision would round the probabilities of sure verdicts
    if logits.shape[1] == 1:
        return logits[:, 0]
    sides = sides_of(classes, task)
    return np.logaddexp.reduce(logits[:, sides.suspected], axis=1) - logits[:, sides.other]
