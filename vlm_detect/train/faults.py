"""Faults of explanations, generated from the data: the rejected explanation of a preference.

    FAULTS["wrong_place"](explained, rng, among)       # the faulty explanation; None where this fault is impossible

A sentence added to a rejected explanation has to be false for its image, or the preference would teach an error. A
measured reason is checked against the image's pixels; one about an edit against the row's record. Of reasons that
cannot be checked, only kinds that the image does not have are used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from vlm_detect.generate.edit_reasons import operation_wordings
from vlm_detect.images.decode import decode_image
from vlm_detect.images.stored import StoredImage
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.measures.claims import check_claim, read_claim
from vlm_detect.measures.registry import Measured, measure_image
from vlm_detect.places import PLACE_PATTERNS, PLACES, place_of, places_in
from vlm_detect.questions.kinds.explain import VERDICTS
from vlm_detect.records import Label, Reason

OPPOSITES: dict[Label, str] = {"real": "AI-generated.", "generated": "Real.", "edited": "Not altered."}
_TRIES = 8  # candidate reasons of other images to check


@dataclass(frozen=True)
class Explained:
    """One image with its checked reasons; `stated` are those of the chosen explanation."""

    image: StoredImage = field(repr=False)
    label: Label
    reasons: tuple[Reason, ...]
    stated: tuple[Reason, ...]
    edit: Mapping[str, Any] | None = None

    @cached_property
    def measured(self) -> Measured:
        decoded = decode_image(self.image.content)
        return measure_image(np.asarray(decoded.image), decoded.jpeg.quality if decoded.jpeg else None)


@dataclass(frozen=True)
class Among:
    """The source of faults: every checked reason by label, and the calibration of measures on photos."""

    by_label: Mapping[Label, Sequence[Reason]]
    calibration: MeasureCalibration | None

    def false_reason(self, explained: Explained, supports: Label, rng: random.Random) -> Reason | None:
        """A reason for `supports` from another image that is false for this one; None if none was found."""
        pool = self.by_label.get(supports, ())
        for reason in rng.sample(pool, min(_TRIES, len(pool))):
            if self.is_false(reason, explained):
                return reason
        return None

    def is_false(self, reason: Reason, explained: Explained) -> bool:
        """Whether `reason` is known to be false for an image."""
        if reason.source == "measured":
            claim = read_claim(reason.text)
            if claim is None or self.calibration is None:
                return False
            return check_claim(claim, explained.measured, self.calibration).status == "contradicted"
        if reason.source == "edit":
            return self._is_other_edit(reason, explained)
        return reason.kind not in {one.kind for one in explained.reasons}

    def _is_other_edit(self, reason: Reason, explained: Explained) -> bool:
        if not explained.edit:
            return False
        if reason.kind == "operation":
            done: Any = explained.edit.get("operation")
            return bool(done) and reason.text not in operation_wordings(done)
        box, named = explained.edit.get("box"), places_in(reason.text)
        if not box or len(named) != 1:
            return False
        return named[0] in _far_from(place_of(box, explained.image.size))


def write_explanation(label: Label, reasons: Iterable[Reason]) -> str:
    """The verdict and the reasons' sentences, in the form of trained explanations."""
    return " ".join([VERDICTS[label], *(reason.text for reason in reasons)])


Fault = Callable[[Explained, random.Random, Among], str | None]


def wrong_place(explained: Explained, rng: random.Random, among: Among) -> str | None:
    """The same explanation with one of its places replaced by a wrong one."""
    placed = [i for i, reason in enumerate(explained.stated) if len(places_in(reason.text)) == 1]
    for i in rng.sample(placed, len(placed)):
        reason = explained.stated[i]
        (place,) = places_in(reason.text)
        for other in rng.sample(_far_from(place), len(_far_from(place))):
            moved = replace(reason, text=_move(reason.text, place, other))
            if reason.source != "measured" or among.is_false(moved, explained):
                return write_explanation(explained.label, [*explained.stated[:i], moved, *explained.stated[i + 1 :]])
    return None


def omitted(explained: Explained, rng: random.Random, among: Among) -> str | None:
    """The same explanation without one of its reasons; with a single reason, the verdict only."""
    left_out = rng.randrange(len(explained.stated))
    return write_explanation(explained.label, [r for i, r in enumerate(explained.stated) if i != left_out])


def other_image(explained: Explained, rng: random.Random, among: Among) -> str | None:
    """The same number of reasons, one of them from another image of the same label, and false here."""
    reason = among.false_reason(explained, explained.label, rng)
    if reason is None:
        return None
    alike = [i for i, stated in enumerate(explained.stated) if stated.kind == reason.kind]
    i = rng.choice(alike or range(len(explained.stated)))
    return write_explanation(explained.label, [*explained.stated[:i], reason, *explained.stated[i + 1 :]])


def fault_on_photo(explained: Explained, rng: random.Random, among: Among) -> str | None:
    """For a photo: called real, with a false reason that supports "generated"."""
    reason = among.false_reason(explained, "generated", rng) if explained.label == "real" else None
    return None if reason is None else write_explanation("real", [*explained.stated[:-1], reason])


def other_verdict(explained: Explained, rng: random.Random, among: Among) -> str | None:
    """The same reasons under the other verdict."""
    return " ".join([OPPOSITES[explained.label], *(reason.text for reason in explained.stated)])


FAULTS: dict[str, Fault] = {
    "wrong_place": wrong_place,
    "omitted": omitted,
    "other_image": other_image,
    "fault_on_photo": fault_on_photo,
    "other_verdict": other_verdict,
}


def _far_from(place: str) -> list[str]:
    """The cells of the 3x3 grid that do not touch this one."""
    row, column = divmod(PLACES.index(place), 3)
    return [
        name
        for i, name in enumerate(PLACES)
        if max(abs(i // 3 - row), abs(i % 3 - column)) > 1 or (place == "centre" and name != place)
    ]


def _move(text: str, place: str, other: str) -> str:
    return re.sub(rf"\b(?:{PLACE_PATTERNS[place]})\b", other, text, count=1, flags=re.IGNORECASE)
