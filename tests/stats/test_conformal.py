from __future__ import annotations

import numpy as np
import pytest

from vlm_detect.stats.conformal import least_n, p_values


def test_p_values_count_ordinary_scores_at_least_as_high():
    assert p_values(np.array([0.5, 2.0, 3.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_ordinary_images_fall_below_a_level_at_most_at_its_rate():
    rng = np.random.default_rng(0)
    hits = [p_values(rng.normal(size=1), rng.normal(size=99))[0] <= 0.05 for _ in range(4000)]
    assert np.mean(hits) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("level", "n"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3)])
def test_number_of_ordinary_scores_that_a_level_needs(level, n):
    assert least_n(level) == n
    assert p_values(np.array([np.inf]), np.zeros(n))[0] <= level + 1e-12
    assert p_values(np.array([np.inf]), np.zeros(n - 1))[0] > level
