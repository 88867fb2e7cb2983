"""Measures of the traces of compression in the pixels, independent of the current file format."""

from __future__ import annotations

import numpy as np

from vlm_detect.measures.pixels import LEVEL, Pixels
from vlm_detect.measures.registry import Words, measure


@measure(
    "blockiness",
    "compression",
    Words(
        ("its block pattern", "the compression grid", "its grid of 8x8 blocks"),
        lower=("is weaker", "is fainter", "is less visible", "is less pronounced"),
        higher=("is stronger", "is clearer", "is more visible", "is more pronounced"),
        also_higher=(r"(?:shows|has) (?:strong |clear )?(?:jpeg |compression )?blocks", r"looks heavily compressed"),
    ),
)
def blockiness(pixels: Pixels) -> float:
    """Log ratio of the steps across the lines of an 8x8 grid to all other steps, the mean of both directions.

    Z. Wang, H. Sheikh, A. Bovik, "No-reference perceptual quality assessment of JPEG compressed images" (ICIP 2002).
    """
    grey, ratios = pixels.grey, []
    for steps in (np.abs(np.diff(grey, axis=0)).mean(axis=1), np.abs(np.diff(grey, axis=1)).mean(axis=0)):
        on_grid = np.arange(len(steps)) % 8 == 7
        ratios.append(np.log((steps[on_grid].mean() + LEVEL / 10) / (steps[~on_grid].mean() + LEVEL / 10)))
    return float(np.mean(ratios))
