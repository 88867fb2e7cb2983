"""Measures of texture: how varied the smallest patterns are, and how much patches repeat."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import entropy
from skimage.feature import local_binary_pattern

from vlm_detect.measures.pixels import LEVEL, Pixels
from vlm_detect.measures.registry import Words, measure

_PATCHES = 400  # compared with each other


@measure(
    "texture_variety",
    "texture",
    Words(
        ("its texture", "the texture", "the surface texture"),
        lower=("is less varied", "is plainer", "is more monotonous", "is poorer"),
        higher=("is more varied", "is richer", "is less monotonous", "is livelier"),
        also_lower=(r"texture is (?:too |unusually )?(?:smooth|plain|monotonous)",),
        also_higher=(r"texture is (?:rich|varied)",),
    ),
)
def texture_variety(pixels: Pixels) -> float:
    """Entropy, in nats, of the uniform local binary patterns of the eight neighbours.

    T. Ojala, M. Pietikäinen, T. Mäenpää, "Multiresolution gray-scale and rotation invariant texture classification with
    local binary patterns" (IEEE Transactions on Pattern Analysis and Machine Intelligence 24, 2002).
    """
    grey = np.rint(pixels.grey / LEVEL).astype(np.uint8)
    patterns = local_binary_pattern(grey, 8, 1, "uniform").astype(int)
    return float(entropy(np.bincount(patterns.ravel(), minlength=10)))


@measure(
    "self_similarity",
    "repetition",
    Words(
        ("its repetition of patches", "the likeness between its patches", "its self-similarity"),
        lower=("is weaker", "is lower", "is smaller", "is less pronounced"),
        higher=("is stronger", "is higher", "is greater", "is more pronounced"),
        also_higher=(r"(?:repeats itself|patches repeat|patterns? repeats?)",),
    ),
)
def self_similarity(pixels: Pixels) -> float:
    """Mean over patches of the highest correlation with a patch that does not overlap.

    E. Shechtman, M. Irani, "Matching local self-similarities across images and videos" (CVPR 2007).
    """
    side = 4 if min(pixels.size) < 64 else 8
    windows = sliding_window_view(pixels.grey, (side, side))
    step = max(side, int(np.ceil(np.sqrt(windows.shape[0] * windows.shape[1] / _PATCHES))))
    chosen = windows[::step, ::step].reshape(-1, side * side)
    centred = chosen - chosen.mean(axis=1, keepdims=True)
    unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + LEVEL)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -1)
    return float(likeness.max(axis=1).mean())
