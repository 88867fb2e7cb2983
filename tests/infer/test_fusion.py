from __future__ import annotations

import numpy as np
import pytest

from vlm_detect.errors import UserError
from vlm_detect.infer.fusion import FILE, Fusion, accuracies


def witnesses(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two witnesses with errors of their own and a third that knows nothing."""
    rng = np.random.default_rng(seed)
    generated = np.arange(n) % 2 == 1
    signal = np.where(generated, 1.0, -1.0)
    odds = {name: 2 * (signal + rng.normal(size=n)) for name in ("language_model", "head")}
    return odds | {"expert": rng.normal(size=n)}, generated


def test_two_witnesses_with_independent_errors_are_better_together():
    odds, generated = witnesses(4000)
    fusion = Fusion.fit(odds, generated)
    fresh, truth = witnesses(4000, seed=1)
    fused = ((fusion.log_odds(fresh) > 0) == truth).mean()
    assert fused > max(accuracies(fresh, truth).values()) + 0.03


def test_a_witness_that_knows_nothing_has_no_weight():
    weights = {witness.name: witness.weight for witness in Fusion.fit(*witnesses(4000)).witnesses}
    assert abs(weights["expert"]) < 0.15
    assert weights["language_model"] == pytest.approx(weights["head"], rel=0.15)


def test_the_scale_of_a_witness_does_not_change_verdicts():
    odds, generated = witnesses(200)
    loud = odds | {"head": 1000 * odds["head"]}
    np.testing.assert_allclose(
        Fusion.fit(odds, generated).log_odds(odds), Fusion.fit(loud, generated).log_odds(loud), rtol=1e-3, atol=1e-3
    )


def test_fused_log_odds_are_calibrated():
    odds, generated = witnesses(20000)
    fused = 1 / (1 + np.exp(-Fusion.fit(odds, generated).log_odds(odds)))
    for p in (0.2, 0.5, 0.8):
        assert generated[np.abs(fused - p) < 0.1].mean() == pytest.approx(p, abs=0.06)


def test_witnesses_against_the_verdict_are_named():
    fusion = Fusion.fit(*witnesses(4000))
    assert fusion.disagreement({"language_model": 5.0, "head": -1.0, "expert": 0.0}) == ["head"]
    assert fusion.disagreement({"language_model": 5.0, "head": 1.0, "expert": 0.0}) == []


def test_a_single_witness_is_used_unchanged():
    assert Fusion.alone().log_odds({"language_model": 1.25}) == 1.25


def test_a_saved_fusion_is_the_same(tmp_path):
    odds, generated = witnesses(400)
    fusion = Fusion.fit(odds, generated, {"expert": ("runs/cnn", "ab12")})
    fusion.save(tmp_path)
    assert Fusion.load(tmp_path) == fusion
    assert fusion.expert is not None
    assert fusion.expert.path == "runs/cnn"
    assert Fusion.load(tmp_path / "nowhere") is None


def test_a_missing_witness_is_one_line():
    with pytest.raises(UserError, match="needs expert"):
        Fusion.fit(*witnesses(100)).log_odds({"language_model": 0.0, "head": 0.0})


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"witnesses": [{"nome": 1}], "intercept": 0, "n": 1}'])
def test_a_file_that_is_no_fusion_is_one_line(text, tmp_path):
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is not a fusion"):
        Fusion.load(tmp_path)


def test_one_class_alone_is_one_line():
    with pytest.raises(UserError, match="one of the classes"):
        Fusion.fit({"head": np.zeros(3)}, np.zeros(3, dtype=bool))
