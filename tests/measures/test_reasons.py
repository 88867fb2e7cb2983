"""Reasons speak for their image's own label, differ between images, and are confirmed by their own measurement."""

from __future__ import annotations

import numpy as np
import pytest

from tests.measures.factories import natural, noisy
from vlm_detect.columns import REASON_FEATURES
from vlm_detect.measures.calibration import MeasureCalibration, fit_calibration
from vlm_detect.measures.claims import check_claim, read_claim
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import Measured, measure_image
from vlm_detect.places import places_in
from vlm_detect.records import Reason


def image(seed: int, *, generated: bool) -> np.ndarray:
    """Generated ones have less noise and more saturated colours, each by an amount of its own."""
    rng = np.random.default_rng(seed)
    picture = natural(seed, 48)
    if generated:
        grey = picture.mean(axis=2, keepdims=True)
        picture = np.clip(grey + rng.uniform(1, 2.5) * (picture - grey), 0, 1)
    return noisy(picture, rng.uniform(0.002, 0.02) if generated else rng.uniform(0.01, 0.04), seed)


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    return [measure_image(image(i, generated=i % 2 == 1)) for i in range(160)]


@pytest.fixture(scope="module")
def calibration(measured) -> MeasureCalibration:
    return fit_calibration(measured, [i % 2 == 1 for i in range(160)], [str(i // 2) for i in range(160)])


def test_each_reason_supports_its_own_label_and_is_true(measured, calibration):
    for i, one in enumerate(measured):
        label = "generated" if i % 2 else "real"
        reasons = measured_reasons(one, calibration, label, seed=str(i))
        assert len(reasons) <= 4
        assert len({reason.kind for reason in reasons}) == len(reasons)
        assert [r.margin for r in reasons] == sorted((r.margin for r in reasons), reverse=True)
        for reason in reasons:
            assert (reason.supports, reason.source, reason.margin > 0) == (label, "measured", True)
            claim = read_claim(reason.text)
            assert claim.measure == reason.checked_by
            check = check_claim(claim, one, calibration)
            assert (check.status, check.value, check.percentile) == ("confirmed", reason.value, reason.percentile)
            assert places_in(reason.text) == [] if reason.box is None else check.place == "confirmed"
            assert set(reason.to_row()) == set(REASON_FEATURES)
            assert Reason.from_row(reason.to_row()) == reason


def test_both_classes_have_reasons_and_they_differ(measured, calibration):
    for start in (0, 1):
        label = "generated" if start else "real"
        said = [measured_reasons(one, calibration, label, seed="s") for one in measured[start::2]]
        assert np.mean([len(reasons) for reasons in said]) >= 1
        assert len({tuple(reason.checked_by for reason in reasons) for reasons in said}) > 5


def test_the_seed_affects_only_the_wording(measured, calibration):
    one = next(m for m in measured[1::2] if measured_reasons(m, calibration, "generated", seed=""))
    first, again, other = (measured_reasons(one, calibration, "generated", seed=seed) for seed in ("a", "a", "b"))
    assert first == again
    assert [r.text for r in first] != [r.text for r in other]
    assert [(r.checked_by, r.percentile) for r in first] == [(r.checked_by, r.percentile) for r in other]


def test_without_a_label_reasons_may_support_either_class(measured, calibration):
    found = [measured_reasons(one, calibration, None, seed="", most=9) for one in measured]
    sides = [{reason.supports for reason in reasons} for reasons in found]
    assert {"real", "generated"} in sides
    for one, reasons in zip(measured, found, strict=True):
        for label in ("real", "generated"):
            of_label = [reason for reason in reasons if reason.supports == label]
            assert of_label == measured_reasons(one, calibration, label, seed="", most=9)


def test_images_without_reasons(measured, calibration):
    assert measured_reasons(measured[1], calibration, "edited", seed="") == []
    assert measured_reasons(Measured({}, (48, 48)), calibration, "generated", seed="") == []
    assert measured_reasons(Measured(measured[1].values, (480, 480)), calibration, "generated", seed="") == []
    assert measured_reasons(measured[1], MeasureCalibration(), "generated", seed="") == []
