"""Measures of the spectrum: how much fine detail there is, how it falls off, and periodic patterns."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vlm_detect.measures.pixels import LEVEL, Pixels, ninths
from vlm_detect.measures.registry import Grid, Words, measure

_FINE, _FINEST = 0.25, 0.45  # cycles a pixel
_FLOOR = LEVEL**2 / 12  # power of rounding to 8 bits, below which no signal can be measured

_STRENGTH = {
    "lower": ("is weaker", "is fainter", "is less pronounced", "is less marked"),
    "higher": ("is stronger", "is clearer", "is more pronounced", "is more marked"),
}


def _fine_map(pixels: Pixels) -> Grid:
    """Energy of the residual over that of the whole, by ninths."""
    grey = pixels.grey
    return np.log((ninths(pixels.residual**2) + _FLOOR) / (ninths((grey - grey.mean()) ** 2) + _FLOOR))


@measure(
    "fine_detail",
    "fine_detail",
    Words(
        ("its fine detail", "the fine detail", "fine detail"),
        **_STRENGTH,
        also_lower=(r"(?:lacks|has little|misses) fine detail", r"fine detail is (?:missing|lost|smoothed away)"),
        also_higher=(r"has (?:much|a lot of|abundant) fine detail", r"rich(?:ness)? in fine detail"),
    ),
    map=_fine_map,
)
def fine_detail(pixels: Pixels) -> float:
    """Log share of the power above a quarter cycle a pixel.

    T. Dzanic, K. Shah, F. Witherden, "Fourier spectrum discrepancies in deep network generated images" (NeurIPS 2020).
    """
    power = pixels.spectrum
    fine = power[pixels.radius > _FINE].sum()
    return float(np.log((fine + _FLOOR) / (power.sum() + _FLOOR)))


@measure(
    "finest_detail",
    "fine_detail",
    Words(
        ("its finest detail", "the finest detail", "the detail between single pixels"),
        **_STRENGTH,
        also_lower=(r"(?:lacks|has little) (?:the )?finest detail", r"the highest frequencies are (?:missing|weak)"),
        also_higher=(r"the highest frequencies are (?:strong|too strong)",),
    ),
    map=lambda pixels: np.log(ninths(pixels.residual**2) + _FLOOR),
)
def finest_detail(pixels: Pixels) -> float:
    """Log of the mean power at the highest radial frequencies, above 0.45 cycles a pixel.

    R. Durall, M. Keuper, J. Keuper, "Watch your up-convolution: CNN based generative deep neural networks are failing
    to reproduce spectral distributions" (CVPR 2020).
    """
    power = pixels.spectrum
    return float(np.log(power[pixels.radius > _FINEST].mean() + _FLOOR))


@measure(
    "spectral_slope",
    "spectrum",
    Words(
        ("its spectrum", "the spectrum", "the frequency spectrum"),
        lower=("falls off more slowly", "is flatter", "drops less steeply", "declines more gently"),
        higher=("falls off more steeply", "is steeper", "drops faster", "declines more sharply"),
    ),
)
def spectral_slope(pixels: Pixels) -> float:
    """Exponent by which the power falls with the frequency: about 2 in photos.

    A. van der Schaaf, J. van Hateren, "Modelling the power spectra of natural images" (Vision Research 36, 1996).
    """
    power, radius = pixels.spectrum, pixels.radius
    rings = min(power.shape) // 2
    ring = np.rint(radius * min(power.shape)).astype(int)
    inside = (ring > 0) & (ring <= rings)
    counts = np.bincount(ring[inside], minlength=rings + 1)[1:]
    profile = np.bincount(ring[inside], power[inside], minlength=rings + 1)[1:] / np.maximum(counts, 1)
    known = counts > 0
    frequency = np.log(np.arange(1, rings + 1)[known])
    return float(-np.polyfit(frequency, np.log(profile[known] + _FLOOR), 1)[0])


@measure(
    "spectral_peaks",
    "spectrum",
    Words(
        ("its spectrum", "the spectrum", "the frequency spectrum"),
        lower=("is smoother", "has fainter peaks", "has weaker periodic peaks", "shows less of a periodic pattern"),
        higher=(
            "is more peaked",
            "has stronger peaks",
            "has stronger periodic peaks",
            "shows more of a periodic pattern",
        ),
        also_higher=(r"(?:shows|has) (?:a )?periodic (?:pattern|peaks?)",),
    ),
)
def spectral_peaks(pixels: Pixels) -> float:
    """How far the highest of the fine frequencies rise above their neighbours: the 99.5th percentile, in nats.

    X. Zhang, S. Karaman, S.-F. Chang, "Detecting and simulating artifacts in GAN fake images" (WIFS 2019); R. Corvi et
    al., "Intriguing properties of synthetic images: from generative adversarial networks to diffusion models" (CVPR
    workshops 2023).
    """
    logs = np.log(pixels.spectrum + _FLOOR)
    excess = logs - ndimage.median_filter(logs, 5, mode="wrap")
    return float(np.percentile(excess[pixels.radius > 0.15], 99.5))


@measure(
    "pixel_grid",
    "spectrum",
    Words(
        ("its pattern of every other pixel", "the pattern of every second pixel", "the checkerboard pattern"),
        **_STRENGTH,
        also_higher=(r"(?:shows|has) (?:a )?checkerboard(?: pattern| artefacts?| artifacts?)?",),
    ),
)
def pixel_grid(pixels: Pixels) -> float:
    """Log ratio of the power at a period of two pixels along an axis to the other power above 0.4 cycles a pixel.

    A. Odena, V. Dumoulin, C. Olah, "Deconvolution and checkerboard artifacts" (Distill, 2016).
    """
    power = pixels.spectrum
    on_line = np.zeros(power.shape, bool)
    for axis, length in enumerate(power.shape):
        lines = np.abs(np.fft.fftfreq(length)) > 0.5 - 1 / length
        on_line |= np.expand_dims(lines, 1 - axis)
    rest = (pixels.radius > 0.4) & ~on_line
    return float(np.log((power[on_line].mean() + _FLOOR) / (power[rest].mean() + _FLOOR)))


@measure(
    "colour_filter",
    "spectrum",
    Words(
        ("its trace of a colour filter", "the trace of a camera's colour filter", "the colour filter pattern"),
        **_STRENGTH,
    ),
    min_side=64,
)
def colour_filter(pixels: Pixels) -> float:
    """Log peak, over the median, of the diagonals' variance at a period of two: the trace of a Bayer colour filter.

    A. Gallagher, T. Chen, "Image authentication by detecting traces of demosaicing" (CVPR workshops 2008). A photo
    that was downscaled has lost it.
    """
    green = pixels.rgb[..., 1]
    detail = np.abs(
        4 * green[1:-1, 1:-1] - green[:-2, 1:-1] - green[2:, 1:-1] - green[1:-1, :-2] - green[1:-1, 2:],
    )
    height, width = detail.shape
    diagonal = np.arange(height)[:, None] + np.arange(width)  # every other green is interpolated
    sums = np.bincount(diagonal.ravel(), detail.ravel())
    means = (sums / np.bincount(diagonal.ravel()))[: (height + width - 1) // 2 * 2]
    magnitude = np.abs(np.fft.rfft(means - means.mean()))
    return float(np.log((magnitude[-1] + LEVEL) / (np.median(magnitude[1:]) + LEVEL)))
