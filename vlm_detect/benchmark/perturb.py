"""What happens to images on their way: the fixed tiers, and curves over one thing at a time.

    for condition in TIERS + CURVES:
        changed = condition.apply(image, seed="item 17")

The tiers (clean; web: long side at most 768, JPEG 60; hard: at most 512, JPEG 40; thumb: at most 128) have fixed
names so that figures can be compared between papers. The curves change one thing in steps and return to the image's
own size where they left it. The seed decides what is random; equal seeds give equal pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from vlm_detect.images.encode import through_jpeg

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Condition:
    """`family` is the curve (or "tier"), `level` its place on it in the unit that `family` implies."""

    family: str
    level: float | str
    change: Change

    @property
    def name(self) -> str:
        return str(self.level) if self.family == "tier" else f"{self.family}_{self.level:g}"

    def apply(self, image: Image.Image, seed: str) -> Image.Image:
        digest = hashlib.sha256(f"{self.name}:{seed}".encode()).digest()
        return self.change(image.convert("RGB"), np.random.default_rng(int.from_bytes(digest[:8], "little")))


def fit(image: Image.Image, long_side: int) -> Image.Image:
    """Scaled down so that the long side is at most `long_side` pixels; never up."""
    scale = long_side / max(image.size)
    return image if scale >= 1 else resized(image, scale)


def resized(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _tier(image: Image.Image, rng: np.random.Generator, long_side: int, quality: int | None) -> Image.Image:
    small = fit(image, long_side)
    return small if quality is None else through_jpeg(small, quality)


def _same(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image


def _jpeg(image: Image.Image, rng: np.random.Generator, quality: int) -> Image.Image:
    return through_jpeg(image, quality)


def _scale(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    return resized(image, share).resize(image.size, Image.Resampling.LANCZOS)


def _blur(image: Image.Image, rng: np.random.Generator, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _noise(image: Image.Image, rng: np.random.Generator, sigma: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + rng.normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))


def _crop(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
    x, y = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def _screenshot(image: Image.Image, rng: np.random.Generator, times: int) -> Image.Image:
    """Shown at another size, captured and uploaded, `times` over: resampled off the grid, then JPEG 75."""
    for _ in range(times):
        image = through_jpeg(resized(image, float(rng.uniform(0.8, 1.1))), 75)
    return image


TIERS = (
    Condition("tier", "clean", _same),
    Condition("tier", "web", partial(_tier, long_side=768, quality=60)),
    Condition("tier", "hard", partial(_tier, long_side=512, quality=40)),
    Condition("tier", "thumb", partial(_tier, long_side=128, quality=None)),
)
CURVES = (
    *(Condition("jpeg", quality, partial(_jpeg, quality=quality)) for quality in (95, 75, 50, 25)),
    *(Condition("scale", share, partial(_scale, share=share)) for share in (0.75, 0.5, 0.25)),
    *(Condition("blur", radius, partial(_blur, radius=radius)) for radius in (0.5, 1.0, 2.0)),
    *(Condition("noise", sigma, partial(_noise, sigma=sigma)) for sigma in (2.0, 5.0, 10.0)),
    *(Condition("crop", share, partial(_crop, share=share)) for share in (0.9, 0.75, 0.5)),
    *(Condition("screenshot", times, partial(_screenshot, times=times)) for times in (1, 2, 3)),
)
UNITS = {
    "jpeg": "JPEG quality",
    "scale": "share of the size, scaled back",
    "blur": "radius of the blur in pixels",
    "noise": "standard deviation of the noise in grey levels",
    "crop": "share of the sides that is left",
    "screenshot": "times captured and uploaded",
}
