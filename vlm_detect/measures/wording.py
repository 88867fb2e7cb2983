"""A measured value as a sentence: what is lower or higher, than in how many photos, and where most.

    write_sentence(MEASURES["noise_evenness"], "lower", 0.9, rng)
    # "Its noise is less even than in nine of ten photos of this size."

Only coarse shares are stated, because an image shows little more than that a value exceeds those of three quarters or
nine tenths of photos. The stated share is at most the true one. `claims.py` parses every wording.
"""

from __future__ import annotations

import random
from itertools import product

from vlm_detect.measures.calibration import Direction
from vlm_detect.measures.registry import Grid, Measure
from vlm_detect.places import PLACES

# The shares of photos that may be stated, and their wordings.
BOUNDS: dict[float, tuple[str, ...]] = {
    0.75: ("three quarters of", "over 75 % of", "three of four"),
    0.9: ("nine tenths of", "over 90 % of", "nine of ten"),
}
_FRAMES = (
    "{subject} {predicate} than in {share} photos of this size{place}.",
    "for an image of this size, {subject} {predicate} than in {share} photos{place}.",
    "{subject} {predicate} than in {share} photos as large as this{place}.",
)
_PLACES = (", most of all at the {place}", ", above all at the {place}", ", mainly at the {place}")
_STANDS_OUT = 1.8  # standard deviations of the nine from their mean; of normal noise one grid in five has such a ninth


def bound_of(share: float) -> float | None:
    """The largest share that may be stated for a value beyond `share` of photos; None if it is too ordinary."""
    return max((bound for bound in BOUNDS if share >= bound), default=None)


def place_of_grid(grid: Grid, direction: Direction) -> str | None:
    """The ninth that is far lower or higher than the others; None if none stands out."""
    values = (grid if direction == "higher" else -grid).ravel()
    spread = values.std()
    top = int(values.argmax())
    return PLACES[top] if spread > 0 and values[top] - values.mean() >= _STANDS_OUT * spread else None


def write_sentence(
    measure: Measure, direction: Direction, bound: float, rng: random.Random, place: str | None = None
) -> str:
    """One of the wordings, sampled by `rng`; `bound` is one of `BOUNDS`, `place` one of `vlm_detect.places.PLACES`."""
    parts = _FRAMES, measure.words.subjects, _predicates(measure, direction), BOUNDS[bound]
    frame, subject, predicate, share = (rng.choice(part) for part in parts)
    where = rng.choice(_PLACES).format(place=place) if place else ""
    return _filled(frame, subject, predicate, share, where)


def wordings(measure: Measure, direction: Direction, bound: float, place: str | None = None) -> list[str]:
    """Every sentence that `write_sentence` can return."""
    where = [phrase.format(place=place) for phrase in _PLACES] if place else [""]
    parts = product(_FRAMES, measure.words.subjects, _predicates(measure, direction), BOUNDS[bound], where)
    return [_filled(*part) for part in parts]


def _predicates(measure: Measure, direction: Direction) -> tuple[str, ...]:
    return measure.words.lower if direction == "lower" else measure.words.higher


def _filled(frame: str, subject: str, predicate: str, share: str, place: str) -> str:
    text = frame.format(subject=subject, predicate=predicate, share=share, place=place)
    return text[:1].upper() + text[1:]
