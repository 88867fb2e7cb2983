from collections.abc import Iterator

import numpy as np
import pytest

from vlm_detect.stats.metrics import METRICS, Sample, figure_names, figures, metric, reliability, weighted_figures

Y = np.array([0, 0, 1, 1, 1], float)
P = np.array([0.1, 0.6, 0.4, 0.8, 0.9])


def test_figures_by_hand() -> None:
    got = figures(Y, P)
    # Said generated: 0.6 (a real one), 0.8, 0.9. Pairs (generated, real) in order: 5 of 6.
    assert got["tpr"] == pytest.approx(2 / 3)
    assert got["tnr"] == pytest.approx(1 / 2)
    assert got["balanced_accuracy"] == pytest.approx(7 / 12)
    assert got["f1"] == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert got["auroc"] == pytest.approx(5 / 6)
    # Precision at each generated image in rank order: 1/1, 2/2, 3/4.
    assert got["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert got["fpr_at_95_tpr"] == pytest.approx(1 / 2)
    assert got["tpr_at_1_fpr"] == got["tpr_at_01_fpr"] == pytest.approx(2 / 3)
    assert got["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04 + 0.01) / 5)
    assert got["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.2 + 0.1) / 5)  # one item a bin


def test_calibrated_scores_have_zero_calibration_error() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 1], float)
    p = np.array([0.75] * 4 + [0.25] * 4)
    assert figures(y, p)["ece"] == pytest.approx(0)
    assert reliability(y, p) == [(0.25, 0.25, 4), (0.75, 0.75, 4)]


def test_constant_score_ranks_nothing() -> None:
    got = figures(Y, np.full(5, 0.7))
    assert got["auroc"] == 0.5
    assert got["ap"] == pytest.approx(3 / 5)
    assert got["fpr_at_95_tpr"] == 1
    assert got["tpr_at_1_fpr"] == 0
    assert got["balanced_accuracy"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_ranking_metrics_are_undefined_for_one_class(label: int) -> None:
    y, p = np.full(4, float(label)), np.array([0.1, 0.2, 0.8, 0.9])
    got = figures(y, p)
    assert np.isnan(got["auroc"])
    assert np.isnan(got["balanced_accuracy"])
    assert np.isfinite(got["tpr" if label else "tnr"])
    assert np.isfinite(got["brier"])


@pytest.mark.parametrize("seed", range(5))
def test_vectorised_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random(60) < 0.4).astype(float)
    p = rng.random(60).round(1 if seed % 2 else 6)  # with and without ties
    weights = rng.integers(0, 4, (8, 60)).astype(float)
    got = weighted_figures(y, p, weights)
    for b, row in enumerate(weights.astype(int)):
        plain = figures(np.repeat(y, row), np.repeat(p, row))
        for name in figure_names():
            assert got[name][b] == pytest.approx(plain[name], nan_ok=True), name


def test_resample_of_one_class_is_nan_and_not_a_crash() -> None:
    got = weighted_figures(Y, P, np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], float))
    assert np.isnan(got["auroc"][:2]).all()
    assert got["auroc"][2] == pytest.approx(5 / 6)
    assert np.isnan(got["tpr"][0])
    assert np.isnan(got["tnr"][1])


@pytest.fixture
def youden() -> Iterator[None]:
    @metric("youden", "Youden's J")
    def youden(sample: Sample) -> np.ndarray:
        return sample.tpr + sample.tnr - 1

    yield
    del METRICS._things["youden"], METRICS._makers["youden"]


@pytest.mark.usefixtures("youden")
def test_a_custom_metric_is_computed_like_any_other() -> None:
    assert figure_names(scores=False)[-1] == "youden"
    assert figures(Y, P)["youden"] == pytest.approx(2 / 3 + 1 / 2 - 1)
    weights = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], float)
    got = weighted_figures(Y, P, weights)["youden"]
    assert got[0] == pytest.approx(1 / 6)
    assert np.isnan(got[1])
    assert np.isnan(figures(np.empty(0), np.empty(0))["youden"])
