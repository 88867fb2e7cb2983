"""Explanations checked against measurements: of their own image, and of others of the same label.

checked = check(item, answer, measured, calibration)
checked.reasons, checked.claims            # its sentences with their status, and what each states of a measure
others_of(rows, seed=0)[0]                 # the images that a blind text would fit as well as row 0's
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vlm_detect.infer.explanation import CheckedReason, check_sentences
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.measures.claims import Claim, check_claim, read_claim
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import Measured
from vlm_detect.questions.kinds.explain import NOTHING_STANDS_OUT
from vlm_detect.records import Item, Label, Reason, label_named

OTHERS = 8  # images of the same label that an explanation is checked against


@dataclass(frozen=True, eq=False)
class Checked:
    """One explanation. `reasons` are its sentences but for the verdict; `measured` are its own image's numbers.

    With an empty `calibration` nothing is checked.
    """

    item: Item
    reasons: tuple[CheckedReason, ...]
    measured: Measured
    calibration: MeasureCalibration

    @property
    def label(self) -> Label:
        label = label_named(str(self.item.metadata["label"]))
        assert label is not None  # of a dataset
        return label

    @cached_property
    def claims(self) -> list[Claim | None]:
        """Of each sentence what it states of a measure, where that can be checked against this image."""
        return [read_claim(one.text) if one.status != "unchecked" else None for one in self.reasons]

    @cached_property
    def own(self) -> tuple[int, int]:
        """(claims that are true of its image, claims that were checked against it)."""
        return self._counts(self.measured)

    def counts_against(self, other: Measured) -> tuple[int, int]:
        """The same against another image."""
        return self._counts(other)

    def _counts(self, measured: Measured) -> tuple[int, int]:
        statuses = [check_claim(claim, measured, self.calibration).status for claim in self.claims if claim]
        return statuses.count("confirmed"), len(statuses) - statuses.count("unchecked")

    @cached_property
    def could_say(self) -> list[Reason]:
        """What is measured of this image and speaks for its label, as `add-reasons` says it."""
        return measured_reasons(self.measured, self.calibration, self.label, seed="")

    @property
    def recalled(self) -> int:
        """How many of those are truly claimed."""
        pairs = zip(self.reasons, self.claims, strict=True)
        confirmed = {claim.measure for reason, claim in pairs if claim and reason.status == "confirmed"}
        return sum(reason.checked_by in confirmed for reason in self.could_say)

    @property
    def stated(self) -> list[CheckedReason]:
        """Its sentences but for one that only says that nothing of the image stands out."""
        return [one for one in self.reasons if one.text != NOTHING_STANDS_OUT]

    @property
    def unchecked(self) -> list[CheckedReason]:
        """Those that no measurement checks."""
        return [one for one in self.stated if one.status == "unchecked"]

    @cached_property
    def named_boxes(self) -> list[tuple[int, int, int, int]]:
        """The places that it names, each once; a sentence that names several names none."""
        return list(dict.fromkeys(one.box for one in self.stated if one.box))

    @property
    def says_ordinary(self) -> bool:
        """Whether it says that nothing of the image stands out."""
        return len(self.stated) < len(self.reasons)

    def speaks_for(self, claim: Claim | None) -> Label | None:
        """The label that a claim speaks for; None where its measure does not tell the classes apart."""
        scale = self.calibration.scales.get(claim.measure) if claim else None
        if claim is None or scale is None or not scale.is_informative:
            return None
        return "generated" if claim.direction == scale.generated else "real"

    def speaks_against(self, verdict: bool | None) -> bool:
        """Whether a claim speaks for the other label than the explanation's `verdict` (True: generated)."""
        against = {True: "real", False: "generated"}.get(verdict)  # type: ignore[arg-type]
        return any(self.speaks_for(claim) == against for claim in self.claims if claim and against)

    @property
    def false_faults(self) -> int:
        """Claims that support "generated" and are false."""
        pairs = zip(self.reasons, self.claims, strict=True)
        return sum(reason.status == "contradicted" and self.speaks_for(claim) == "generated" for reason, claim in pairs)


def check(item: Item, answer: str, measured: Measured, calibration: MeasureCalibration) -> Checked:
    """`answer` sentence by sentence against `measured`, the numbers of the image that it is about."""
    reasons = check_sentences(answer, measured.size, measured, calibration)
    return Checked(item, tuple(reasons), measured, calibration)


def others_of(rows: Sequence[Checked], *, seed: int = 0, most: int = OTHERS) -> list[list[Checked]]:
    """Of each row at most `most` of the same label and of another source photo; each serves about equally often."""
    by_label: dict[Label, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_label[row.label].append(i)
    found: list[list[Checked]] = [[] for _ in rows]
    for label, places in by_label.items():
        order = random.Random(f"others:{seed}:{label}").sample(places, len(places))
        for position, i in enumerate(order):
            after = (order[(position + step) % len(order)] for step in range(1, len(order)))
            for j in after:
                if len(found[i]) == most:
                    break
                if rows[j].item.group != rows[i].item.group:
                    found[i].append(rows[j])
    return found
