"""Whether a calibration means anything: on a model at chance every temperature and threshold is noise.

doubt(odds, generated, groups)      # "", or a sentence
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

from vlm_detect.stats.intervals import bootstrap
from vlm_detect.stats.metrics import weighted_figures

_LEVEL = 0.05
_RESAMPLES = 300  # enough to see on which side of 0.5 an interval lies


def doubt(odds: np.ndarray, generated: np.ndarray, groups: Sequence[str], *, at_bound: bool = False) -> str:
    """Why log-odds (N,) of real and generated images cannot be calibrated; empty where nothing speaks against it.

    A model is at chance if the interval of its AUROC contains 0.5. A bootstrap alone would call four correctly
    separated images certain, so the Mann-Whitney test, which is exact for small samples, has to agree. `at_bound`: the
    fitted temperature is at its bound.
    """
    truth = np.asarray(generated, dtype=float)

    def auroc(weights: np.ndarray) -> dict[str, np.ndarray]:
        return weighted_figures(truth, odds, weights, names=["auroc"])

    point = float(auroc(np.ones((1, len(truth))))["auroc"][0])
    interval = bootstrap(groups, auroc, resamples=_RESAMPLES)["auroc"]
    p = float(mannwhitneyu(odds[truth > 0], odds[truth == 0]).pvalue)
    if interval is not None and interval[0] <= 0.5 <= interval[1]:
        return f"the model is at chance (AUROC {point:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
    if interval is None or p >= _LEVEL:
        seen = f"source photos: {len(set(groups))}" if interval is None else f"p {p:.2f}"
        return f"the images are too few to tell the model from chance (AUROC {point:.2f}, {seen})"
    if at_bound:
        return f"the temperature meets its bound (AUROC {point:.2f})"
    return ""
