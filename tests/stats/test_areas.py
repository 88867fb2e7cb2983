"""Areas under the ROC curve and their intervals over groups."""

import numpy as np

from vlm_detect.stats.areas import auc, auc_interval, design_effect


def test_intervals_contain_the_true_value() -> None:
    """300 draws with a known area of 0.76: the 95 % interval has it about as often, and groups count for one."""
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        y, groups = np.repeat([0.0, 1.0], 60), np.arange(120) // 3  # three images of one photo and class
        common = np.repeat(rng.normal(size=40), 3) * np.sqrt(0.7)
        scores = common + rng.normal(size=120) * np.sqrt(0.3) + y
        low, high = auc_interval(scores, y, groups, 0.05)
        inside += low <= 0.7602 <= high
    assert 0.90 < inside / 300 < 0.99
    assert design_effect(scores, y, groups) > 1.5


def test_an_area_of_one_is_not_certain() -> None:
    y, groups = np.tile([0.0, 1.0], 12), np.arange(24) // 2
    assert auc(y, y) == 1.0
    few = auc_interval(y, y, groups, 0.05)
    many = auc_interval(np.tile(y, 20), np.tile(y, 20), np.arange(480) // 2, 0.05)
    assert 0.6 < few[0] < many[0] < 1.0
    assert few[1] == many[1] == 1.0
