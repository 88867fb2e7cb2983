"""Measures of noise, which a camera produces and a generator has to imitate."""

from __future__ import annotations

import numpy as np

from vlm_detect.measures.pixels import LEVEL, Pixels, ninths, patches
from vlm_detect.measures.registry import Words, measure

_LEAST = LEVEL / 4


@measure(
    "noise_strength",
    "noise",
    Words(
        ("its noise", "the noise", "the noise in it"),
        lower=("is weaker", "is fainter", "is lower", "is less strong"),
        higher=("is stronger", "is higher", "is heavier", "is more pronounced"),
        also_lower=(
            r"(?:has|shows) (?:too |unusually )?little noise",
            r"lacks (?:sensor |camera |natural )?noise",
            r"(?:less|too little) noise",
        ),
        also_higher=(r"(?:has|shows) (?:too |unusually )?much noise", r"more noise"),
    ),
    map=lambda pixels: np.log(np.sqrt(ninths(pixels.residual**2)) + _LEAST),
)
def noise_strength(pixels: Pixels) -> float:
    """Log standard deviation of the noise residual.

    J. Immerkaer, "Fast noise variance estimation" (Computer Vision and Image Understanding 64, 1996).
    """
    return float(np.log(pixels.residual.std() + _LEAST))


@measure(
    "noise_evenness",
    "noise",
    Words(
        ("its noise", "the noise", "the noise in it"),
        lower=("is less even", "is patchier", "is less uniform", "varies more from place to place"),
        higher=("is more even", "is smoother spread", "is more uniform", "varies less from place to place"),
        also_lower=(r"noise (?:is|looks|seems) (?:uneven|patchy)", r"(?:uneven|patchy) noise"),
        also_higher=(r"noise (?:is|looks|seems) (?:too |very |unusually )?(?:even|uniform)",),
    ),
)
def noise_evenness(pixels: Pixels) -> float:
    """Minus the standard deviation, over patches, of the log noise residual: a sensor's noise is the same everywhere.

    B. Mahdian, S. Saic, "Using noise inconsistencies for blind image forensics" (Image and Vision Computing 27, 2009).
    """
    return float(-np.log(patches(pixels.residual).std(axis=2) + 2 * _LEAST).std())
