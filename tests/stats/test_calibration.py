"""Temperature, threshold and the unsure band do what they say on odds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_detect.errors import UserError
from vlm_detect.stats.calibration import Calibration, fit


def overconfident(n=4000, factor=5.0, seed=0):
    """Odds that are `factor` times what they should be."""
    rng = np.random.default_rng(seed)
    true_odds = rng.normal(0, 2, n)
    generated = rng.random(n) < 1 / (1 + np.exp(-true_odds))
    return true_odds * factor, generated


def test_temperature_undoes_overconfidence():
    odds, generated = overconfident()
    calibration = fit(odds, generated)
    assert calibration.temperature == pytest.approx(5.0, rel=0.1)
    p = calibration.p_fake(odds)
    for low in (0.1, 0.4, 0.7):
        bin_ = (p >= low) & (p < low + 0.2)
        assert generated[bin_].mean() == pytest.approx(p[bin_].mean(), abs=0.06)


def test_outside_the_unsure_band_verdicts_are_right():
    odds, generated = overconfident()
    calibration = fit(odds, generated)
    labels = np.array([calibration.label(p) for p in calibration.p_fake(odds)])
    sure = labels != "unsure"
    assert 0.1 < sure.mean() < 0.9
    assert ((labels == "generated") == generated)[sure].mean() >= 0.95


def test_a_bias_towards_one_class_is_corrected():
    odds, generated = overconfident()
    shifted = fit(odds + 20, generated)
    assert shifted.bias == pytest.approx(20, abs=0.5)
    assert shifted.threshold == pytest.approx(0.5, abs=0.1)
    assert ((shifted.p_fake(odds + 20) > shifted.threshold) == generated).mean() > 0.75


def test_max_fpr_bounds_false_positives():
    odds, generated = overconfident()
    calibration = fit(odds, generated, max_fpr=0.02)
    false_positives = calibration.p_fake(odds[~generated]) > calibration.threshold
    assert 0.01 < false_positives.mean() <= 0.02


def test_a_separable_set_gives_a_sane_temperature_and_no_unsure_band():
    calibration = fit(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert 0.5 < calibration.temperature < 5
    assert calibration.unsure_low == calibration.unsure_high == pytest.approx(0.5)
    assert [calibration.label(p) for p in (0.1, 0.9)] == ["real", "generated"]


def test_saved_and_loaded(tmp_path):
    calibration = fit(*overconfident(200))
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration
    assert calibration.real_quantiles
    assert Calibration.load(tmp_path / "elsewhere") == Calibration()


def test_one_class():
    with pytest.raises(UserError, match="one of the classes"):
        fit(np.array([1.0, 2.0]), np.array([True, True]))


def test_a_model_at_chance_is_not_reliable():
    rng = np.random.default_rng(0)
    generated = np.arange(400) % 2 == 1
    by_chance = fit(rng.normal(size=400), generated)
    assert not by_chance.reliable
    assert "at chance (AUROC 0.5" in by_chance.doubt
    assert fit(rng.normal(size=400) + generated, generated).reliable


def test_twins_of_one_photo_are_not_independent_evidence():
    """Forty times the same six images, by chance in order: as single images that would be certain."""
    odds, generated = np.tile([0.1, 0.2, 0.3, 0.25, 0.35, 0.15], 40), np.tile([0, 0, 0, 1, 1, 1], 40).astype(bool)
    assert fit(odds, generated).reliable
    assert not fit(odds, generated, groups=[str(i % 6) for i in range(240)]).reliable


def test_four_correctly_classified_images_do_not_make_a_model_reliable():
    few = fit(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert not few.reliable
    assert "too few" in few.doubt


def test_a_good_score_on_one_photo_is_too_few_images_and_not_a_model_at_chance():
    odds, generated = overconfident(n=400)
    few = fit(odds, generated, groups=["one photo"] * 400)
    assert not few.reliable
    assert few.doubt.startswith("the images are too few to tell the model from chance (AUROC 0.")


def test_anticorrelated_odds_reach_the_temperature_bound():
    odds, generated = overconfident()
    turned = fit(-odds, generated)
    assert not turned.reliable
    assert "meets its bound" in turned.doubt
