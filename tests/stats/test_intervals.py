import numpy as np
import pytest

from vlm_detect.stats.intervals import bootstrap, mcnemar, paired_bootstrap
from vlm_detect.stats.metrics import figures, weighted_figures


def _accuracy(right):
    right = np.asarray(right, float)
    return lambda w: {"accuracy": w @ right / w.sum(axis=1)}


def test_interval_of_a_proportion_is_near_the_normal_one() -> None:
    right = np.r_[np.ones(70), np.zeros(30)]
    low, high = bootstrap([str(i) for i in range(100)], _accuracy(right))["accuracy"]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 100)
    assert low == pytest.approx(0.7 - half, abs=0.02)
    assert high == pytest.approx(0.7 + half, abs=0.02)


def test_complete_groups_are_sampled() -> None:
    # 100 answers about 4 photos, each photo all right or all wrong, are worth 4 answers.
    right = np.repeat([1, 1, 0, 0], 25)
    grouped = bootstrap(np.repeat(list("abcd"), 25).tolist(), _accuracy(right))["accuracy"]
    single = bootstrap([str(i) for i in range(100)], _accuracy(right))["accuracy"]
    assert grouped[1] - grouped[0] > 3 * (single[1] - single[0])


def test_one_group_has_no_interval() -> None:
    assert bootstrap(["a"] * 5, _accuracy([1, 0, 1, 1, 0]))["accuracy"] is None
    assert bootstrap([], _accuracy([])) == {}


def test_resamples_without_one_class_are_left_out() -> None:
    y, p = np.array([0, 1.0, 1, 1]), np.array([0.2, 0.8, 0.7, 0.1])
    found = bootstrap(list("abcd"), lambda w: weighted_figures(y, p, w))
    low, high = found["auroc"]
    assert 0 <= low <= 2 / 3 <= high <= 1


def test_results_depend_on_the_seed_and_not_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [str(i // 2) for i in range(40)]
    right = np.arange(40) % 3 == 0
    first = bootstrap(groups, _accuracy(right), seed=1)
    assert first == bootstrap(groups, _accuracy(right), seed=1)
    monkeypatch.setattr("vlm_detect.stats.intervals._CELLS", 700)
    assert bootstrap(groups, _accuracy(right), seed=1) == first


def test_mcnemar_by_hand() -> None:
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    # Eight against two: P(X <= 2 or X >= 8), X ~ Binomial(10, 1/2) = 2 * 56 / 1024.
    assert mcnemar(first, second) == (8, 2, pytest.approx(112 / 1024))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_paired_bootstrap_detects_a_difference_and_its_absence() -> None:
    groups = [str(i) for i in range(100)]
    worse, better = _accuracy(np.arange(100) % 10 < 5), _accuracy(np.arange(100) % 10 < 8)
    (low, high), p = paired_bootstrap(groups, worse, better)["accuracy"]
    assert 0 < low < 0.3 < high
    assert p < 0.01
    assert paired_bootstrap(groups, worse, worse)["accuracy"] == ((0.0, 0.0), 1.0)


def test_interval_of_the_calibration_error_contains_its_estimate() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200)
    y = (rng.random(200) < p).astype(float)  # calibrated: every resample looks worse than the sample
    point = figures(y, p)["ece"]
    groups = [str(i) for i in range(200)]
    plain = bootstrap(groups, lambda w: weighted_figures(y, p, w))["ece"]
    low, high = bootstrap(groups, lambda w: weighted_figures(y, p, w), biased={"ece": point})["ece"]
    assert 0 <= low < point < high
    assert high < plain[1]
