"""Percentiles among photos of a size, and which measures may speak: on numbers whose classes are known to differ."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.measures.factories import random_measurements
from vlm_detect.errors import UserError
from vlm_detect.measures.calibration import (
    FILE,
    MIN_AUROC,
    MIN_PHOTOS,
    MeasureCalibration,
    _shares,
    _shares_of_one,
    fit_calibration,
    octave_of,
)
from vlm_detect.measures.registry import Measured

SHIFTS = {"much": 2.0, "some": 0.8, "less": -1.5, "little": 0.2, "nothing": 0.0}


@pytest.fixture(scope="module")
def calibration() -> MeasureCalibration:
    return fit_calibration(*random_measurements(400, SHIFTS))


def one(value: float, size: tuple[int, int] = (32, 32), quality: int | None = None, name: str = "much") -> Measured:
    return Measured({name: value}, size, quality)


def test_only_measures_that_separate_the_classes_are_used(calibration):
    assert calibration.informative == ["much", "less", "some"]
    assert {name: scale.generated for name, scale in calibration.scales.items() if scale.is_informative} == {
        "much": "higher",
        "some": "higher",
        "less": "lower",
    }
    assert calibration.scales["much"].auroc == pytest.approx(0.921, abs=0.02)  # of two normals 2 apart
    assert calibration.scales["less"].auroc == pytest.approx(0.855, abs=0.03)
    for scale in calibration.scales.values():
        assert scale.ci95[0] < scale.auroc < scale.ci95[1]
        assert scale.is_informative == (scale.ci95[0] > MIN_AUROC)


def test_random_measures_are_hardly_ever_used():
    """Of 300 measures of nothing, whose intervals miss the truth in one of twenty cases, hardly one is above 0.6."""
    nothing = {f"m{i}": 0.0 for i in range(10)}
    assert (
        sum(len(fit_calibration(*random_measurements(40, nothing, seed=seed)).informative) for seed in range(30)) <= 2
    )


def test_few_photos_are_less_certain_than_many():
    few, many = (fit_calibration(*random_measurements(n, {"a": 0.7}, seed=3)).scales["a"].ci95 for n in (40, 800))
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_repeats_of_a_photo_are_not_more_evidence():
    measured, generated, groups = random_measurements(40, {"a": 0.9}, seed=5)
    alone = fit_calibration(measured, generated, groups).scales["a"].ci95
    often = fit_calibration(measured * 8, np.tile(generated, 8), groups * 8).scales["a"].ci95
    assert often[1] - often[0] > 0.8 * (alone[1] - alone[0])


def test_percentiles_are_relative_to_photos(calibration):
    photos = np.sort(
        [m.values["much"] for m, is_one in zip(*random_measurements(400, SHIFTS)[:2], strict=True) if not is_one]
    )
    for value in (-1.5, -0.3, 0.0, 0.4, 2.2):
        standing = calibration.standing(one(value), "much")
        assert standing.below == pytest.approx((photos < value).mean(), abs=0.01)
        assert standing.above == pytest.approx((photos > value).mean(), abs=0.01)
        assert standing.percentile == pytest.approx(100 * (photos < value).mean(), abs=1)
        assert standing.beyond("higher") == standing.below
        assert standing.beyond("lower") == standing.above
    assert calibration.standing(one(-99), "much").percentile == 0
    assert calibration.standing(one(99), "much").percentile == 100


def test_equal_values_exceed_no_share():
    """Half of the photos have nothing clipped: neither is such an image below them nor above."""
    measured = [Measured({"a": value}, (32, 32)) for value in [0.0] * 50 + [round(i / 50, 6) for i in range(1, 51)]]
    found = fit_calibration(measured, [False] * 100, [str(i) for i in range(100)])
    standing = found.standing(Measured({"a": 0.0}, (32, 32)), "a")
    assert (standing.below, standing.above) == (0.0, pytest.approx(0.5, abs=0.02))
    assert standing.percentile == pytest.approx(25, abs=1)
    assert found.scales == {}
    assert found.images == {"real": 100, "generated": 0}


def test_a_percentile_does_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    for quantiles in (np.sort(rng.normal(size=101)), np.sort(rng.integers(0, 9, 101)) / 4.0, np.zeros(101)):
        values = np.concatenate([rng.normal(size=200), quantiles, [-9.0, 9.0]])
        together = np.stack(_shares(quantiles, values), axis=1)
        alone = [_shares_of_one(quantiles.tolist(), value) for value in values.tolist()]
        assert together == pytest.approx(np.array(alone), abs=1e-12)


def test_margins_rise_towards_generated_values(calibration):
    margins = calibration.scales["much"].margins
    assert list(margins) == sorted(margins)
    assert margins[0] < -1 < 1 < margins[-1]
    assert list(calibration.scales["less"].margins) == sorted(calibration.scales["less"].margins, reverse=True)
    assert calibration.scales["much"].margin(0) == margins[0]
    assert calibration.scales["much"].margin(100) == margins[-1]
    # Of two normals 2 apart it is 2 * 1.96 - 2 nats at the photos' 97.5th percentile, the middle of the last bin.
    assert margins[-1] == pytest.approx(2 * 1.96 - 2, abs=0.7)


def test_photos_of_another_size_are_not_compared():
    small, large = (
        random_measurements(60, {"a": 1.0}),
        random_measurements(60, {"a": 1.0}, seed=1, size=(256, 256), offset=10.0),
    )
    found = fit_calibration(small[0] + large[0], np.concatenate([small[1], large[1]]), small[2] + large[2])
    assert found.standing(one(10.0, (256, 256), name="a"), "a").percentile == pytest.approx(50, abs=12)
    assert found.standing(one(10.0, (32, 32), name="a"), "a").percentile == 100
    assert found.standing(one(10.0, (220, 300), name="a"), "a") is not None
    assert found.standing(one(10.0, (300, 400), name="a"), "a") is not None  # half an octave away
    assert found.standing(one(10.0, (64, 64), name="a"), "a") is None
    assert found.standing(one(10.0, name="another"), "another") is None
    assert octave_of((32, 32)) == 10
    assert octave_of((512, 512)) == 18


def test_a_measure_that_only_follows_the_size_is_not_used():
    """Generated images are larger, and large images have higher numbers, photos as well."""
    small = random_measurements(100, {"a": 0.0}, seed=1)
    large = random_measurements(100, {"a": 0.0}, seed=2, size=(256, 256), offset=10.0)
    kept = [i for i in range(200) if not small[1][i] or i % 8 == 1]
    large_kept = [i for i in range(200) if large[1][i] or i % 8 == 0]
    measured = [small[0][i] for i in kept] + [large[0][i] for i in large_kept]
    generated = [bool(small[1][i]) for i in kept] + [bool(large[1][i]) for i in large_kept]
    groups = [small[2][i] for i in kept] + [large[2][i] for i in large_kept]
    raw = [m.values["a"] for m in measured]
    assert np.corrcoef(raw, generated)[0, 1] > 0.5
    assert fit_calibration(measured, generated, groups).informative == []


def test_photos_of_the_same_compression_are_preferred():
    fine = random_measurements(60, {"a": 0.0}, jpeg_quality=95)
    coarse = random_measurements(60, {"a": 0.0}, seed=1, jpeg_quality=40, offset=-5.0)
    found = fit_calibration(fine[0] + coarse[0], np.concatenate([fine[1], coarse[1]]), fine[2] + coarse[2])
    percentiles = [found.standing(one(-5.0, quality=q, name="a"), "a").percentile for q in (40, 30, 75, 95)]
    assert percentiles == pytest.approx([50, 50, 25, 0], abs=12)


def test_too_few_photos_for_a_reference():
    with pytest.raises(UserError, match="too few"):
        fit_calibration(*random_measurements(MIN_PHOTOS - 1, {"a": 1.0}))
    assert fit_calibration(*random_measurements(MIN_PHOTOS, {"a": 1.0})).photos[0].count == MIN_PHOTOS
    scattered = [replace(m, size=(2**i, 2**i)) for i, m in enumerate(random_measurements(5, {"a": 1.0})[0], 4)]
    with pytest.raises(UserError, match="photos of one size"):
        fit_calibration(scattered, *random_measurements(5, {"a": 1.0})[1:])


def test_calibration_is_saved_as_json(calibration, tmp_path):
    assert MeasureCalibration.load(tmp_path) is None
    calibration.save(tmp_path)
    assert MeasureCalibration.load(tmp_path) == calibration
    values = json.loads((tmp_path / FILE).read_text())
    for broken in ("", "[]", "{}", json.dumps({**values, "scales": {"a": {}}})):
        (tmp_path / FILE).write_text(broken)
        with pytest.raises(UserError, match="make it again with add-reasons"):
            MeasureCalibration.load(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**values, "schema": 99}))
    with pytest.raises(UserError, match="newer"):
        MeasureCalibration.load(tmp_path)


def test_the_order_of_images_has_no_effect(calibration):
    measured, generated, groups = random_measurements(400, SHIFTS)
    order = np.random.default_rng(0).permutation(len(measured))
    again = fit_calibration([measured[i] for i in order], generated[order], [groups[i] for i in order])
    assert again.photos == calibration.photos
    assert again.informative == calibration.informative
