"""Measures of colour: saturation, clipping to black or white, and fine detail in the colours."""

from __future__ import annotations

import numpy as np

from vlm_detect.measures.pixels import LEVEL, Array, Pixels, ninths, power, radii
from vlm_detect.measures.registry import Words, measure

_DARK, _LIGHT = 2.5 * LEVEL, 252.5 * LEVEL  # levels 0 to 2 and 253 to 255 count as clipped
_FLOOR = LEVEL**2 / 12

_AREA = {
    "lower": ("is smaller", "is lower", "covers less", "takes less room"),
    "higher": ("is larger", "is greater", "covers more", "takes more room"),
}


def _saturation(pixels: Pixels) -> Array:
    return np.divide(pixels.lightest - pixels.darkest, np.maximum(pixels.lightest, LEVEL), dtype=np.float32)


@measure(
    "saturation",
    "colour",
    Words(
        ("its colour saturation", "the saturation of its colours", "its saturation"),
        lower=("is lower", "is weaker", "is more muted", "is less intense"),
        higher=("is higher", "is stronger", "is greater", "is more intense"),
        also_lower=(r"colours are (?:too |unusually )?(?:pale|muted|desaturated)",),
        also_higher=(r"colours are (?:too |unusually )?(?:vivid|oversaturated|saturated)", r"oversaturated"),
    ),
    map=lambda pixels: ninths(_saturation(pixels)),
)
def saturation(pixels: Pixels) -> float:
    """Mean saturation of hue, saturation and value, 0 to 1.

    S. McCloskey, M. Albright, "Detecting GAN-generated imagery using saturation cues" (ICIP 2019).
    """
    return float(_saturation(pixels).mean())


@measure(
    "dark_clipping",
    "colour",
    Words(
        ("its area clipped to black", "the share of pure black", "the part that is clipped to black"),
        **_AREA,
        also_higher=(r"(?:darks|blacks|shadows) are (?:clipped|crushed)",),
    ),
    map=lambda pixels: ninths((pixels.darkest < _DARK).astype(np.float32)),
)
def dark_clipping(pixels: Pixels) -> float:
    """Share of the pixels with a channel at the lowest three levels.

    S. McCloskey, M. Albright, "Detecting GAN-generated imagery using saturation cues" (ICIP 2019): a generator's
    normalisation keeps pixels from being under- and over-exposed as a sensor's are.
    """
    return float((pixels.darkest < _DARK).mean())


@measure(
    "light_clipping",
    "colour",
    Words(
        ("its area clipped to white", "the share of pure white", "the part that is clipped to white"),
        **_AREA,
        also_higher=(r"(?:lights|whites|highlights) are (?:clipped|blown out)",),
    ),
    map=lambda pixels: ninths((pixels.lightest > _LIGHT).astype(np.float32)),
)
def light_clipping(pixels: Pixels) -> float:
    """Share of the pixels with a channel at the highest three levels; same source as `dark_clipping`."""
    return float((pixels.lightest > _LIGHT).mean())


@measure(
    "colour_detail",
    "colour",
    Words(
        ("its fine colour detail", "the detail in its colours", "the colour detail"),
        lower=("is weaker", "is fainter", "is less pronounced", "is coarser"),
        higher=("is stronger", "is finer", "is more pronounced", "is clearer"),
    ),
)
def colour_detail(pixels: Pixels) -> float:
    """Log share of both colour differences' power above 0.2 cycles a pixel.

    H. Li, B. Li, S. Tan, J. Huang, "Identification of deep network generated images using disparities in color
    components" (Signal Processing 174, 2020).
    """
    spectrum = sum((power(plane) for plane in pixels.chroma), np.zeros((), np.float32))
    fine = spectrum[radii(spectrum.shape) > 0.2].sum()
    return float(np.log((fine + _FLOOR) / (spectrum.sum() + _FLOOR)))
