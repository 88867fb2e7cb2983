from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vlm_detect.errors import UserError
from vlm_detect.infer.head import FILE, Head


def images(n: int, seed: int = 0, width: int = 6, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two classes with one covariance between them, and which are generated."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width))
    generated = np.arange(n) % 2 == 1
    return rng.normal(size=(n, width)) @ mixing + apart * generated[:, None], generated


def test_log_odds_are_those_of_scikit_learn_at_the_same_shrinkage():
    features, generated = images(400)
    head = Head.fit(features, generated)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0, priors=[0.5, 0.5]).fit(features, generated)
    plain = Head(head.counts, head.means, head.scatter, 0.0)
    np.testing.assert_allclose(plain.log_odds(features), reference.decision_function(features), rtol=1e-4, atol=1e-3)
    assert 0 < head.shrinkage < 0.2


def test_more_features_than_images_still_give_finite_log_odds():
    features, generated = images(20, width=60)
    head = Head.fit(features, generated)
    assert np.isfinite(head.log_odds(features)).all()
    assert head.shrinkage > 0.05


def test_log_odds_are_nats():
    generated = np.arange(20000) % 2 == 1
    features = np.random.default_rng(0).normal(size=(20000, 3)) + 0.8 * generated[:, None]
    odds = Head.fit(features, generated).log_odds(features)
    said = 1 / (1 + np.exp(-odds))
    for low in (0.2, 0.4, 0.6, 0.8):
        some = (said > low - 0.1) & (said < low + 0.1)
        assert generated[some].mean() == pytest.approx(low, abs=0.03)


def test_adding_images_equals_fitting_on_all():
    old, old_truth = images(300, seed=1)
    new, new_truth = images(120, seed=2, apart=2.0)
    together = Head.fit(np.concatenate([old, new]), np.concatenate([old_truth, new_truth]))
    added = Head.fit(old, old_truth).combined(Head.fit(new, new_truth))
    np.testing.assert_allclose(added.means, together.means)
    np.testing.assert_allclose(added.scatter, together.scatter, rtol=1e-9, atol=1e-6)


def test_a_weight_equals_repeated_images():
    old, old_truth = images(300, seed=1)
    new, new_truth = images(40, seed=2)
    tripled = Head.fit(np.concatenate([old, new, new, new]), np.concatenate([old_truth, *[new_truth] * 3]))
    weighted = Head.fit(old, old_truth).combined(Head.fit(new, new_truth), weight=3.0)
    np.testing.assert_allclose(weighted.scatter, tripled.scatter, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(weighted.counts, tripled.counts)


def test_images_far_from_both_classes_are_novel_and_similar_ones_are_not():
    features, generated = images(2000)
    head = Head.fit(features, generated).with_ordinary(images(999, seed=5)[0])
    assert (head.novelty(images(1000, seed=6)[0]) <= 0.01).mean() <= 0.02
    assert (head.novelty(images(50, seed=7)[0] + 30) <= 0.01).all()


def test_a_level_needs_enough_ordinary_images():
    features, generated = images(400)
    head = Head.fit(features, generated)
    assert not head.with_ordinary(features[:98]).can_judge_novelty(0.01)
    assert head.with_ordinary(features[:99]).can_judge_novelty(0.01)


def test_a_saved_head_gives_the_same_log_odds(tmp_path):
    features, generated = images(400)
    head = Head.fit(features, generated, about={"features": "tower"}).with_ordinary(features)
    head.save(tmp_path)
    again = Head.load(tmp_path)
    assert again is not None
    np.testing.assert_allclose(again.log_odds(features), head.log_odds(features), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again.novelty(features), head.novelty(features), atol=0.01)
    assert again.about == {"features": "tower"}
    assert Head.load(tmp_path / "nowhere") is None


def test_a_damaged_head_is_one_line(tmp_path):
    (tmp_path / FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="is not a head"):
        Head.load(tmp_path)


@pytest.mark.parametrize(
    ("features", "generated", "message"),
    [
        (np.zeros((4, 2)), np.array([True] * 4), "at least 2 real"),
        (np.full((4, 2), np.nan), np.array([True, False] * 2), "non-finite"),
    ],
)
def test_unfittable_data_is_one_line(features, generated, message):
    with pytest.raises(UserError, match=message):
        Head.fit(features, generated)


def test_a_head_of_another_tower_is_refused():
    features, generated = images(100)
    with pytest.raises(UserError, match="another tower"):
        Head.fit(features, generated).log_odds(np.zeros((1, 9)))
