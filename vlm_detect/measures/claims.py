"""Sentences about a measure, parsed strictly and checked against the values of the image that they are about.

    claim = read_claim("Its noise is less even than in 94 % of photos of this size, above all at the top.")
    # Claim(measure="noise_evenness", kind="noise", direction="lower", bound=0.94, place="top")
    check_claim(claim, measure_image(image), calibration).status       # confirmed | contradicted | unchecked

A sentence is a claim only if it is unambiguous: one measure by one of its names, one direction, no negation, and a
comparison with photos. Anything else is None, which callers count as a sentence that cannot be checked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm_detect.measures.calibration import Direction, MeasureCalibration
from vlm_detect.measures.registry import MEASURES, Grid, Measured
from vlm_detect.places import PLACES, places_in
from vlm_detect.records import ReasonKind

Status = Literal["confirmed", "contradicted", "unchecked"]

USUAL = 0.5  # the share of photos if a sentence gives none: "weaker than usual"
SLACK = 0.05  # tolerance of a stated share, which is a round number
_NEAR = 3  # a named place is right if it is among so many of the nine

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: number for number, word in enumerate(_WORDS)} | {"twelve": 12, "twenty": 20, "hundred": 100}
_NUMBER = rf"(?:\d+|{'|'.join(_NUMBERS)})"
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10, "twentieth": 20}
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?) ?(?:%|percent\b|per cent\b)")
_OF = re.compile(rf"\b({_NUMBER}) (?:of|in|out of) (?:every |each )?({_NUMBER})\b")
_FRACTION = re.compile(rf"\b({_NUMBER})[ -]({'|'.join(_PARTS)})s?\b")
_IN_WORDS = {
    r"(?:nearly|almost|virtually|practically) (?:all|every)": 0.95,
    r"(?:most|the majority|half|more than half|usual|usually|typical|expected)": USUAL,
}
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|cannot|without|hardly|barely|\w+n't)\b")
_OTHERS = re.compile(r"\bthan (?:in|of|for) .*?\b(?:generated|ai|fakes?|synthetic|rendered|twins?|edited)\b")
_ADVERB = (
    r"(?:(?:also|much|far|clearly|slightly|somewhat|visibly|noticeably|considerably|markedly|significantly|even|a bit|"
    r"a little) )?"
)
_VERBS = {"is": "(?:is|was|looks|seems|appears)", "are": "(?:are|were|look|seem|appear)"}
_DETERMINER = r"(?:(?:its|the|this|this image's|the image's|this picture's|the picture's) )?"


@dataclass(frozen=True)
class Claim:
    """That a measure is lower, or higher, than in a `bound` share (0.5 to 1) of photos of the size; most at `place`."""

    measure: str
    kind: ReasonKind
    direction: Direction
    bound: float = USUAL
    place: str | None = None


@dataclass(frozen=True)
class Check:
    """Result of a check: `status` of the complete claim, `place` of the place alone. `percentile` is 0 to 100."""

    status: Status
    value: float | None = None
    percentile: float | None = None
    place: Status = "unchecked"


def read_claim(sentence: str) -> Claim | None:
    """The one claim that a sentence makes, or None."""
    text = _plain(sentence)
    if _NEGATION.search(text) or _OTHERS.search(text):
        return None
    found = list(_statements(text))
    if len({(name, direction) for name, direction, _ in found}) != 1:
        return None
    name, direction, end = max(found, key=lambda statement: statement[2])
    bound = _share_in(text[end:])
    if bound is None or not USUAL <= bound <= 1:
        return None
    places = places_in(text[end:])
    return Claim(name, MEASURES[name].kind, direction, bound, places[0] if len(places) == 1 else None)


def check_claim(claim: Claim, measured: Measured, calibration: MeasureCalibration) -> Check:
    """Check a claim against an image: unchecked if it has no such value, or there are no photos of its size.

    A place is right if at most two other ninths are further in the claim's direction; a wrong one contradicts the
    claim. It is unchecked if the measure has no grid, or `measured` has no pixels.
    """
    standing = calibration.standing(measured, claim.measure) if claim.measure in MEASURES else None
    if standing is None:
        return Check("unchecked")
    is_right = standing.beyond(claim.direction) >= claim.bound - SLACK
    place: Status = "unchecked"
    if claim.place and (grid := measured.grid(claim.measure)) is not None:
        place = "confirmed" if _is_near(grid, claim.place, claim.direction) else "contradicted"
    status: Status = "confirmed" if is_right and place != "contradicted" else "contradicted"
    return Check(status, standing.value, round(standing.percentile, 1), place)


def _is_near(grid: Grid, place: str, direction: Direction) -> bool:
    values = (grid if direction == "higher" else -grid).ravel()
    return int(np.sum(values > values[PLACES.index(place)])) < _NEAR


def _plain(text: str) -> str:
    lowered = " ".join(text.lower().replace("’", "'").split())
    return re.sub(r"\bcolor", "colour", lowered).replace("gray", "grey")


def _statements(text: str) -> Iterator[tuple[str, Direction, int]]:
    """(measure, direction, where it ends) of every phrase that states one."""
    for name, direction, pattern in _patterns(tuple(MEASURES)):
        for match in pattern.finditer(text):
            yield name, direction, match.end()


@functools.lru_cache(maxsize=4)
def _patterns(names: tuple[str, ...]) -> list[tuple[str, Direction, re.Pattern[str]]]:
    found: list[tuple[str, Direction, re.Pattern[str]]] = []
    for name in names:
        words = MEASURES[name].words
        cores = {re.sub(r"^(?:its|the) ", "", _plain(subject)) for subject in words.subjects}
        subject = _any_of(map(re.escape, cores))
        sides: dict[Direction, tuple[tuple[str, ...], tuple[str, ...]]] = {
            "lower": (words.lower, words.also_lower),
            "higher": (words.higher, words.also_higher),
        }
        for direction, (predicates, also) in sides.items():
            said = rf"{_DETERMINER}{subject} {_any_of(map(_predicate, predicates))}"
            found.append((name, direction, re.compile(rf"(?<![\w-]){_any_of([said, *also])}(?![\w-])")))
    return found


def _predicate(phrase: str) -> str:
    """Of "is weaker": also "looks weaker", "is much weaker"."""
    verb, _, rest = phrase.partition(" ")
    return rf"{_VERBS.get(verb, re.escape(verb))} {_ADVERB}{re.escape(rest)}"


def _any_of(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(patterns, key=len, reverse=True))})"


def _share_in(text: str) -> float | None:
    """The share of photos that is stated; None if there are several."""
    shares = {float(found) / 100 for found in _PERCENT.findall(text)}
    for part, whole in _OF.findall(text):
        if (of := _number(whole)) > 0:
            shares.add(_number(part) / of)
    shares |= {_number(part) / _PARTS[name] for part, name in _FRACTION.findall(text)}
    if not shares:
        shares = {share for words, share in _IN_WORDS.items() if re.search(rf"\b{words}\b", text)} or {USUAL}
    return shares.pop() if len(shares) == 1 else None


def _number(word: str) -> int:
    return int(word) if word.isdigit() else _NUMBERS[word]
