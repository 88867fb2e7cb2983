"""A guaranteed false-alarm rate holds for as many calibrations as it says, whatever the scores' distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest, expon, norm

from vlm_detect.errors import UserError
from vlm_detect.stats.calibration import Calibration, fit
from vlm_detect.stats.guarantee import PhotoScores, bound, check_photos, least_photos, least_rate

DISTRIBUTIONS = {"normal": norm(-4, 3), "exponential": expon(scale=5)}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_of_200_calibrations_at_most_16_exceed_the_rate(name):
    """Each on 299 photos; the true rate of a threshold is that of the distribution that they come from."""
    scores = DISTRIBUTIONS[name]
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(200):
        found = Calibration(temperature=2.0, bias=1.0).fit_photos(scores.rvs(299, random_state=rng), 0.01)
        threshold = 1.0 + 2.0 * np.log(found.threshold / (1 - found.threshold))  # back in log-odds
        exceeded += scores.sf(threshold) > 0.01
    assert 1 <= exceeded <= 16  # 10 are expected: a threshold that is never exceeded would be no better than none


def test_the_true_rate_follows_the_beta_distribution():
    rng = np.random.default_rng(1)
    rates = [
        norm.sf(PhotoScores.from_odds(norm.rvs(size=500, random_state=rng)).cut(0.02).log_odds) for _ in range(400)
    ]
    above = PhotoScores.from_odds(np.arange(500.0)).cut(0.02).above
    law = beta(above + 1, 500 - above)
    assert np.mean(rates) == pytest.approx(law.mean(), rel=0.1)
    assert np.quantile(rates, 0.9) == pytest.approx(law.ppf(0.9), rel=0.1)
    assert law.ppf(0.95) <= 0.02 < beta(above + 2, 499 - above).ppf(0.95)  # one photo more would be too many


def test_the_bound_is_the_clopper_pearson_limit():
    for above, n in ((0, 299), (3, 400), (17, 1000)):
        interval = binomtest(above, n, alternative="less").proportion_ci(0.95, method="exact")
        assert float(bound(above, n)) == pytest.approx(interval.high)


@pytest.mark.parametrize(("rate", "photos"), [(0.01, 299), (0.05, 59), (0.001, 2995), (0.5, 5)])
def test_number_of_photos_that_a_rate_needs(rate, photos):
    assert least_photos(rate) == photos
    check_photos(photos, rate)
    with pytest.raises(UserError, match=rf"needs at least {photos} photos, these are {photos - 1}; give more"):
        check_photos(photos - 1, rate)


def test_the_rate_that_few_photos_can_guarantee_is_named():
    with pytest.raises(
        UserError, match=r"1 % needs at least 299 photos, these are 27; .* guarantee 10.51 %"
    ) as refused:
        PhotoScores.from_odds(np.zeros(27)).cut(0.01)
    assert "\n" not in str(refused.value)
    assert PhotoScores.from_odds(np.zeros(27)).cut(least_rate(27)).above == 0
    with pytest.raises(UserError, match="there are none"):
        check_photos(0, 0.01)


def test_many_photos_are_stored_by_some_of_their_ranks():
    scores = PhotoScores.from_odds(np.random.default_rng(2).normal(size=20_000))
    assert len(scores.quantiles) < 500
    cut = scores.cut(0.05)
    assert cut.bound <= 0.05
    assert 0.04 < cut.reached <= 0.05  # hardly anything is lost by it


def test_scores_that_tie_stay_within_the_guarantee():
    odds = np.repeat([0.0, 1.0, 2.0], 500)
    found = Calibration().fit_photos(odds, 0.1)
    assert (found.p_fake(odds) > found.threshold).mean() <= 0.1
    assert found.label(float(found.p_fake(2.0))) == "real"


def test_another_rate_is_chosen_from_what_is_stored(tmp_path):
    rng = np.random.default_rng(3)
    odds, generated = rng.normal(size=3000), np.arange(3000) % 2 == 1
    fitted = fit(odds + 3 * generated, generated)
    fitted.save(tmp_path)
    found = Calibration.load(tmp_path).guaranteeing(0.01)
    real = odds[~generated]
    assert (found.max_fpr, found.confidence) == (0.01, 0.95)
    assert found.reached == pytest.approx((found.p_fake(real) > found.threshold).mean())
    assert found.bound is not None
    assert found.bound <= 0.01
    assert found.guaranteeing(0.05) == fitted.guaranteeing(0.05)  # one choice leaves no trace in the next
    assert (found.temperature, found.bias, found.n) == (fitted.temperature, fitted.bias, 3000)


def test_scores_above_the_threshold_are_called_generated():
    """The unsure band lies below the threshold, so that verdicts are what the guarantee counts."""
    rng = np.random.default_rng(4)
    generated = np.arange(2000) % 2 == 1
    odds = rng.normal(size=2000) + 1.5 * generated
    for found in (fit(odds, generated, max_fpr=0.02), fit(odds, generated).guaranteeing(0.02)):
        labels = np.array([found.label(p) for p in found.p_fake(odds)])
        above = found.p_fake(odds) > found.threshold
        assert ((labels == "generated") == above).all()
        assert (labels == "unsure").any()
        assert found.reached == pytest.approx((labels[~generated] == "generated").mean())


def test_without_scores_of_photos_nothing_is_guaranteed():
    with pytest.raises(UserError, match="calibrate RUN --data PHOTOS"):
        Calibration().guaranteeing(0.01)


def test_a_repeated_photo_counts_once():
    odds, groups = np.zeros(400), [str(i // 4) for i in range(400)]
    with pytest.raises(UserError, match="these are 100"):
        Calibration().fit_photos(odds, 0.01, groups)
    generated = np.arange(400) % 2 == 1
    with pytest.raises(UserError, match="these are 100"):
        fit(np.arange(400.0), generated, 0.01, groups)


def test_photos_do_not_make_a_model_reliable():
    """They say nothing of generated images: what was found at chance stays so, and its probabilities as well."""
    at_chance = Calibration(temperature=3.0, bias=0.5, reliable=False, doubt="at chance")
    found = at_chance.fit_photos(np.arange(100.0), 0.05)
    assert (found.reliable, found.doubt, found.temperature, found.bias) == (False, "at chance", 3.0, 0.5)
