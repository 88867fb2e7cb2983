"""An explanation as sentences, each checked against a measurement of the same image.

    explanation = check_explanation("AI-generated. Its noise is less even than in 94 % of photos.", image, calibration)
    for reason in explanation.reasons:
        reason.text, reason.status, reason.percentile, reason.box

A sentence that states a measured kind is `confirmed` or `contradicted` by the image's own numbers. Every other sentence
is `unchecked`. Nothing is checked for a run without `measures.json`, which comes from training on a dataset with
reasons (`vlm-detect add-reasons`), or if that has no photos of the image's size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_detect.measures.calibration import MeasureCalibration, octave_of, quality_of
from vlm_detect.measures.claims import Status, check_claim, read_claim
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import Measured, measure_image
from vlm_detect.measures.wording import place_of_grid
from vlm_detect.places import box_of, places_in
from vlm_detect.questions.read import parse_explanation, parse_verdict, sentences
from vlm_detect.records import Label, Reason

_COLOURS: dict[Status, tuple[int, int, int]] = {
    "confirmed": (0, 136, 85),
    "contradicted": (200, 30, 30),
    "unchecked": (120, 120, 120),
}
_ALTERED = re.compile(r"(?:(?:it|(?:this|the) (?:image|picture|photo)) (?:is|was|has been) )?(?:not )?\w+")
_A_SIDE = 2  # sentences for each label where the verdict is unsure
_NUMBERED = 24  # pixels: the minimum side of a box with room for its number
NOTES: dict[Status, str] = {
    "confirmed": "confirmed by measurement",
    "contradicted": "contradicted by measurement",
    "unchecked": "not checked",
}


@dataclass(frozen=True)
class CheckedReason:
    """One sentence of an explanation.

    `box` (x0, y0, x1, y1 in pixels, x1 and y1 exclusive) is the place that the sentence names or, if a confirmed one
    names none, where its measure stands out. `value` and `percentile` (0 to 100, among photos of this size) are those
    of the `measure` that it refers to. `supports` is the likelier label given this value, if the sentence is confirmed
    and the measure separates the labels.
    """

    text: str
    kind: str | None
    box: tuple[int, int, int, int] | None
    status: Status
    value: float | None = None
    percentile: float | None = None
    supports: Label | None = None
    measure: str | None = None

    @property
    def note(self) -> str:
        """The status in words: "confirmed by measurement (noise_strength -4.1, percentile 3 of photos)"."""
        if self.value is None or self.percentile is None:
            return NOTES[self.status]
        return f"{NOTES[self.status]} ({self.measure} {self.value:.3g}, percentile {self.percentile:.0f} of photos)"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "box": list(self.box) if self.box else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CheckedReason:
        return cls(**{**values, "box": tuple(values["box"]) if values["box"] else None})


@dataclass(frozen=True)
class Explanation:
    """`text` is the model's answer, `reasons` its sentences except those that only state the verdict.

    `against_verdict` says that the text states the other verdict than the one that it was written under.
    """

    text: str
    reasons: tuple[CheckedReason, ...]
    against_verdict: bool = False

    def only_confirmed(self) -> Explanation:
        """The explanation with only the sentences that a measurement confirms."""
        kept = tuple(reason for reason in self.reasons if reason.status == "confirmed")
        return replace(self, reasons=kept, text=" ".join(reason.text for reason in kept))

    def to_json(self) -> dict[str, Any]:
        return {"explanation": self.text, "reasons": [reason.to_json() for reason in self.reasons]}

    def draw(self, image: Image.Image, min_side: int = 1) -> Image.Image:
        """`image` with the box of each reason, numbered as in `reasons`: green confirmed, red contradicted, else grey.

        A smaller image than `min_side` pixels is enlarged by a whole factor. Boxes of one place lie within each other.
        """
        scale = math.ceil(min_side / min(image.size))
        size = (scale * image.width, scale * image.height)
        shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        canvas = ImageDraw.Draw(shown)
        width = max(1, min(size) // 200)
        outlined: list[tuple[int, int, int, int]] = []
        for number, reason in enumerate(self.reasons, start=1):
            if reason.box is None:
                continue
            inset = 2 * width * outlined.count(reason.box)
            outlined.append(reason.box)
            x0, y0, x1, y1 = (scale * side for side in reason.box)
            x0, y0, x1, y1 = x0 + inset, y0 + inset, x1 - inset, y1 - inset
            if min(x1 - x0, y1 - y0) < 2:
                continue
            colour = _COLOURS[reason.status]
            canvas.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
            if min(x1 - x0, y1 - y0) >= _NUMBERED:
                # To the right of the numbers of the other boxes in this place, not under them.
                canvas.text(
                    (x0 + 2 * width + 10 * (outlined.count(reason.box) - 1), y0 + width), str(number), fill=colour
                )
        return shown


def check_explanation(
    text: str,
    image: Image.Image,
    calibration: MeasureCalibration | None,
    *,
    jpeg_quality: int | None = None,
    either_side: bool = False,
) -> Explanation:
    """Check each sentence of `text` against `image` (RGB). `jpeg_quality` is that of its file, if it is a JPEG.

    With `either_side` the two strongest measurements for each label follow, but for those that `text` states.
    """
    measured = _measure(image, calibration, jpeg_quality)
    reasons = [_placed(one, measured) for one in check_sentences(text, image.size, measured, calibration)]
    if either_side and measured is not None and calibration is not None:
        said = {reason.measure for reason in reasons if reason.status == "confirmed"}
        for one in _sides(measured, calibration, seed=text):
            if one.checked_by not in said:
                facts = (one.value, one.percentile, one.supports, one.checked_by)
                reasons.append(CheckedReason(one.text, one.kind, one.box, "confirmed", *facts))
    return Explanation(text, tuple(reasons))


def check_sentences(
    text: str, size: tuple[int, int], measured: Measured | None, calibration: MeasureCalibration | None
) -> list[CheckedReason]:
    """The sentences of `text` after the verdict, checked against an image of `size` (width, height) and its values."""
    stated = [sentence for sentence in sentences(text) if not _is_verdict(sentence)]
    return [_checked(sentence, size, measured, calibration) for sentence in stated]


def _sides(measured: Measured, calibration: MeasureCalibration, seed: str) -> list[Reason]:
    sides: tuple[Label, ...] = ("generated", "real")
    return [one for side in sides for one in measured_reasons(measured, calibration, side, seed=seed, most=_A_SIDE)]


def _placed(reason: CheckedReason, measured: Measured | None) -> CheckedReason:
    """The reason with the ninth where its measure stands out, where it names no place and is confirmed."""
    claim = read_claim(reason.text) if reason.status == "confirmed" and reason.box is None else None
    grid = measured.grid(claim.measure) if measured is not None and claim is not None else None
    if measured is None or claim is None or grid is None:
        return reason
    place = place_of_grid(grid, claim.direction)
    return replace(reason, box=box_of(place, measured.size)) if place else reason


def _measure(
    image: Image.Image, calibration: MeasureCalibration | None, jpeg_quality: int | None = None
) -> Measured | None:
    """None where no photo compares with the image: measuring a large one takes seconds and gigabytes."""
    if calibration is None or calibration.photos_like(octave_of(image.size), quality_of(jpeg_quality)) is None:
        return None
    return measure_image(np.asarray(image.convert("RGB")), jpeg_quality)


def _is_verdict(sentence: str) -> bool:
    """Whether a sentence states only the verdict: "AI-generated.", "Yes.", "This is a real photo.", "Not altered."."""
    words = sentence.strip(" .!").lower()
    if _ALTERED.fullmatch(words) and parse_explanation(sentence, "edit") is not None:
        return True
    return words in ("yes", "no", "true", "false") or (len(words.split()) <= 6 and parse_verdict(sentence) is not None)


def _checked(
    sentence: str, size: tuple[int, int], measured: Measured | None, calibration: MeasureCalibration | None
) -> CheckedReason:
    places = places_in(sentence)
    box = box_of(places[0], size) if len(places) == 1 else None
    claim = read_claim(sentence)
    if claim is None or measured is None or calibration is None:
        return CheckedReason(sentence, claim.kind if claim else None, box, "unchecked")
    check = check_claim(claim, measured, calibration)
    supports: Label | None = None
    scale = calibration.scales.get(claim.measure)
    if check.status == "confirmed" and check.percentile is not None and scale is not None and scale.is_informative:
        margin = scale.margin(check.percentile)
        supports = "generated" if margin > 0 else "real" if margin < 0 else None
    return CheckedReason(
        sentence, claim.kind, box, check.status, check.value, check.percentile, supports, claim.measure
    )


def summary(reasons: Sequence[CheckedReason]) -> dict[str, int]:
    """The number of sentences of each status."""
    return {status: sum(reason.status == status for reason in reasons) for status in NOTES}
