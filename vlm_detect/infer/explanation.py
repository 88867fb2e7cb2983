"""An explanation as sentences, each held against a measurement of the very image.

    explanation = check_explanation("AI-generated. Its noise is less even than in 94 % of photos.", image, calibration)
    for reason in explanation.reasons:
        reason.text, reason.status, reason.percentile, reason.box

A sentence that states a measured kind is `confirmed` or `contradicted` by the image's own numbers. Every other one is
`unchecked`: the model's word. Nothing is checked where a run has no `measures.json`, which a dataset with reasons gives
it (`vlm-detect add-reasons`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.measures.claims import Status, check_claim, read_claim
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import Measured, measure_image
from vlm_detect.places import box_of, places_in
from vlm_detect.questions.read import parse_verdict, sentences
from vlm_detect.records import Label

_COLOURS: dict[Status, tuple[int, int, int]] = {
    "confirmed": (0, 136, 85),
    "contradicted": (200, 30, 30),
    "unchecked": (120, 120, 120),
}
NOTES: dict[Status, str] = {
    "confirmed": "confirmed by measurement",
    "contradicted": "contradicted by measurement",
    "unchecked": "the model's word",
}


@dataclass(frozen=True)
class CheckedReason:
    """One sentence of an explanation.

    `box` (x0, y0, x1, y1 in pixels, the last two outside) is the place that the sentence names. `value` and
    `percentile` (0 to 100, among photos of this size) are those of the measure that it speaks of. `supports` is given
    where the explanation argues for either side.
    """

    text: str
    kind: str | None
    box: tuple[int, int, int, int] | None
    status: Status
    value: float | None = None
    percentile: float | None = None
    supports: Label | None = None

    @property
    def note(self) -> str:
        """The status in words, with the measured percentile: "confirmed by measurement, percentile 3 of photos"."""
        if self.percentile is None:
            return NOTES[self.status]
        return f"{NOTES[self.status]}, percentile {self.percentile:.0f} of photos"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "box": list(self.box) if self.box else None}


@dataclass(frozen=True)
class Explanation:
    """`text` is what the model said, `reasons` its sentences without those that only state the verdict."""

    text: str
    reasons: tuple[CheckedReason, ...]

    def only_confirmed(self) -> Explanation:
        """The same without every sentence that no measurement confirms."""
        kept = tuple(reason for reason in self.reasons if reason.status == "confirmed")
        return replace(self, reasons=kept, text=" ".join(reason.text for reason in kept))

    def draw(self, image: Image.Image) -> Image.Image:
        """`image` with the box of each reason, numbered: green confirmed, red contradicted, else grey."""
        shown = image.convert("RGB")
        shown = shown.copy() if shown is image else shown
        canvas = ImageDraw.Draw(shown)
        for number, reason in enumerate(self.reasons, start=1):
            if reason.box:
                x0, y0, x1, y1 = reason.box
                width = max(1, min(shown.size) // 200)
                canvas.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_COLOURS[reason.status], width=width)
                if min(x1 - x0, y1 - y0) >= 24:
                    canvas.text((x0 + 2 * width, y0 + width), str(number), fill=_COLOURS[reason.status])
        return shown


def check_explanation(
    text: str,
    image: Image.Image,
    calibration: MeasureCalibration | None,
    *,
    jpeg_quality: int | None = None,
    supports: Label | None = None,
) -> Explanation:
    """Hold each sentence of `text` against `image` (RGB). `jpeg_quality` is that of its file, where it is a JPEG."""
    measured = measure(image, jpeg_quality) if calibration else None
    stated = [sentence for sentence in sentences(text) if not _is_verdict(sentence)]
    reasons = (_checked(sentence, image.size, measured, calibration, supports) for sentence in stated)
    return Explanation(text, tuple(reasons))


def either_side(
    image: Image.Image, calibration: MeasureCalibration | None, *, jpeg_quality: int | None = None, seed: str = ""
) -> tuple[CheckedReason, ...]:
    """What the measurements of `image` say for each label, the strongest first; empty without a calibration."""
    if calibration is None:
        return ()
    found = measured_reasons(measure(image, jpeg_quality), calibration, None, seed=seed)
    return tuple(
        CheckedReason(one.text, one.kind, one.box, "confirmed", one.value, one.percentile, one.supports)
        for one in found
    )


def measure(image: Image.Image, jpeg_quality: int | None = None) -> Measured:
    return measure_image(np.asarray(image.convert("RGB")), jpeg_quality)


def _is_verdict(sentence: str) -> bool:
    """Whether a sentence says the verdict alone: "AI-generated.", "Yes.", "This is a real photo."."""
    words = sentence.strip(" .!").lower()
    return words in ("yes", "no", "true", "false") or (len(words.split()) <= 6 and parse_verdict(sentence) is not None)


def _checked(
    sentence: str,
    size: tuple[int, int],
    measured: Measured | None,
    calibration: MeasureCalibration | None,
    supports: Label | None,
) -> CheckedReason:
    places = places_in(sentence)
    box = box_of(places[0], size) if len(places) == 1 else None
    claim = read_claim(sentence)
    if claim is None or measured is None or calibration is None:
        return CheckedReason(sentence, claim.kind if claim else None, box, "unchecked", supports=supports)
    check = check_claim(claim, measured, calibration)
    return CheckedReason(sentence, claim.kind, box, check.status, check.value, check.percentile, supports)


def summary(reasons: Sequence[CheckedReason]) -> dict[str, int]:
    """How many sentences have which status."""
    return {status: sum(reason.status == status for reason in reasons) for status in NOTES}
