"""The measures of an image that support a label, as sentences.

    measured_reasons(measured, calibration, "real", seed="an image's id")      # at most four, the strongest first
    measured_reasons(measured, calibration, None, seed="...")                  # for either label

A measure gives a reason if it is informative, if the value is beyond three quarters of photos in the label's direction,
and if such a value is likelier for that label. Only the strongest measure of each kind gives one, so that the reasons
of an image are of different kinds.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from vlm_detect.measures.calibration import Direction, MeasureCalibration, Standing
from vlm_detect.measures.registry import MEASURES, Measured
from vlm_detect.measures.wording import bound_of, place_of_grid, write_sentence
from vlm_detect.places import box_of
from vlm_detect.records import Label, Reason

MOST = 4
_OPPOSITE: dict[Direction, Direction] = {"lower": "higher", "higher": "lower"}


def measured_reasons(
    measured: Measured, calibration: MeasureCalibration, label: Label | None, *, seed: str, most: int = MOST
) -> list[Reason]:
    """At most `most` reasons for `label` (None: for the label that each measure supports), the strongest first.

    `seed` chooses the wordings. Places and boxes are given if `measured` has pixels. No measure supports "edited": none
    was calibrated on edits.
    """
    labels: tuple[Label, ...] = ("real", "generated") if label is None else (label,)
    found = []
    for name in calibration.informative:
        for supports in labels:
            if name in MEASURES and (case := _case(measured, calibration, name, supports)) is not None:
                found.append(case)
    found.sort(key=lambda case: (-case.margin, case.name))
    of_kind: dict[tuple[str, Label], _Case] = {}
    for case in found:
        of_kind.setdefault((MEASURES[case.name].kind, case.supports), case)
    return [_reason(measured, case, seed) for case in list(of_kind.values())[:most]]


class _Case(NamedTuple):
    """A measure that supports a label."""

    name: str
    supports: Label
    direction: Direction
    standing: Standing
    bound: float  # the share of photos that may be stated
    margin: float  # nats


def _case(measured: Measured, calibration: MeasureCalibration, name: str, supports: Label) -> _Case | None:
    standing, scale = calibration.standing(measured, name), calibration.scales[name]
    if standing is None or supports == "edited":
        return None
    for_generated = scale.margin(standing.percentile)
    margin = for_generated if supports == "generated" else -for_generated
    direction = scale.generated if supports == "generated" else _OPPOSITE[scale.generated]
    bound = bound_of(standing.beyond(direction))
    return _Case(name, supports, direction, standing, bound, margin) if margin > 0 and bound is not None else None


def _reason(measured: Measured, case: _Case, seed: str) -> Reason:
    one, grid = MEASURES[case.name], measured.grid(case.name)
    place = place_of_grid(grid, case.direction) if grid is not None else None
    rng = random.Random(f"{seed}:{case.name}")
    return Reason(
        text=write_sentence(one, case.direction, case.bound, rng, place),
        kind=one.kind,
        supports=case.supports,
        source="measured",
        box=box_of(place, measured.size) if place else None,
        value=case.standing.value,
        percentile=round(case.standing.percentile, 1),
        margin=round(case.margin, 2),
        checked_by=case.name,
    )
