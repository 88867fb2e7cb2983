"""Measures of edges: how sharp they are, how evenly over the image, and ringing next to them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vlm_detect.measures.pixels import LEVEL, Pixels, ninths, patches
from vlm_detect.measures.registry import Words, measure

_EDGES = 85  # percentile of the gradient above which a pixel belongs to an edge
_REACH = 2  # pixels next to an edge in which ringing is measured


@measure(
    "sharpness",
    "edges",
    Words(
        ("its edges", "the edges", "its sharpest edges"),
        lower=("are softer", "are less sharp", "are blurrier", "are less steep"),
        higher=("are sharper", "are crisper", "are harder", "are steeper"),
        also_lower=(r"(?:has|shows) (?:too |unusually )?soft edges", r"edges are (?:too |unusually )?(?:soft|blurred)"),
        also_higher=(r"(?:has|shows) (?:too |unusually )?(?:sharp|hard) edges", r"edges are (?:too |unusually )sharp"),
    ),
    map=lambda pixels: np.log(np.sqrt(ninths(pixels.gradient**2)) + LEVEL),
)
def sharpness(pixels: Pixels) -> float:
    """Log of the 99th percentile of the gradient: the steepest edges, however much of the image is flat.

    After the gradient measures compared by S. Pertuz, D. Puig, M. Garcia, "Analysis of focus measure operators for
    shape-from-focus" (Pattern Recognition 46, 2013).
    """
    return float(np.log(np.percentile(pixels.gradient, 99) + LEVEL))


@measure(
    "sharpness_evenness",
    "edges",
    Words(
        ("its sharpness", "the sharpness", "the focus"),
        lower=("is less even", "is less uniform", "differs more from place to place", "varies more"),
        higher=("is more even", "is more uniform", "differs less from place to place", "varies less"),
        also_higher=(r"(?:everything|all of it) is equally sharp",),
    ),
)
def sharpness_evenness(pixels: Pixels) -> float:
    """Minus the standard deviation, over patches, of the log mean gradient: a lens has one plane in focus.

    C. Vu, T. Phan, D. Chandler, "S3: a spectral and spatial measure of local perceived sharpness in natural images"
    (IEEE Transactions on Image Processing 21, 2012) maps sharpness likewise by patches.
    """
    return float(-np.log(patches(pixels.gradient).mean(axis=2) + LEVEL).std())


@measure(
    "ringing",
    "edges",
    Words(
        ("the ripple beside its edges", "its ringing", "the ringing along edges"),
        lower=("is weaker", "is fainter", "is less pronounced", "is lower"),
        higher=("is stronger", "is clearer", "is more pronounced", "is higher"),
        also_higher=(
            r"(?:shows|has) (?:strong |clear )?(?:ringing|halos)",
            r"(?:ripples|halos) (?:beside|around) (?:its |the )?edges",
        ),
    ),
)
def ringing(pixels: Pixels) -> float:
    """Log ratio of the noise residual next to strong edges to that far from them.

    P. Marziliano, F. Dufaux, S. Winkler, T. Ebrahimi, "Perceptual blur and ringing metrics: application to JPEG2000"
    (Signal Processing: Image Communication 19, 2004).
    """
    strength = ndimage.gaussian_gradient_magnitude(pixels.grey, 0.7)
    edges = strength > np.percentile(strength, _EDGES)
    near = ndimage.binary_dilation(edges, iterations=_REACH) & ~edges
    far = ~near & ~edges
    if not near.any() or not far.any():
        return 0.0
    residual = np.abs(pixels.residual)
    return float(np.log((residual[near].mean() + LEVEL / 4) / (residual[far].mean() + LEVEL / 4)))
