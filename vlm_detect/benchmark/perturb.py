"""Image perturbations: the fixed tiers, and curves over one parameter at a time.

    for condition in TIERS + CURVES:
        changed = condition.apply(image, seed="item 17")

The tiers (clean; web: long side at most 768, JPEG 60; hard: at most 512, JPEG 40; thumb: at most 128) have fixed
names so that figures can be compared between papers. Two of them are attacks in several variants, of which the seed
takes one: typographic lays text over the image that speaks for or against it, hard_photos makes photos that detectors
take for generated. The curves change one thing in steps and return to the image's own size where they left it. The
seed decides what is random; equal seeds give equal pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from vlm_detect.images.encode import through_jpeg
from vlm_detect.images.hard_photos import HARD
from vlm_detect.images.typographic import ASKED, SIZES, STYLES, TEXTS, overlay_text
from vlm_detect.images.views import rescale

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _same(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image


@dataclass(frozen=True)
class Condition:
    """`family` is the curve (or "tier"), `level` its place on it in the unit that `family` implies.

    Of `variants` one is taken for each image, in place of `change`. `photos_only`: generated images stay as they are.
    """

    family: str
    level: float | str
    change: Change = _same
    variants: Mapping[str, Change] = field(default_factory=dict)
    photos_only: bool = False

    @property
    def name(self) -> str:
        return str(self.level) if self.family == "tier" else f"{self.family}_{self.level:g}"

    def apply(self, image: Image.Image, seed: str) -> Image.Image:
        rng = self._rng(seed)
        change = self.variants[self._pick(rng)] if self.variants else self.change
        return change(image.convert("RGB"), rng)

    def variant(self, seed: str) -> str:
        """Which of the variants `apply` takes; empty where there is only one."""
        return self._pick(self._rng(seed)) if self.variants else ""

    def _rng(self, seed: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.name}:{seed}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def _pick(self, rng: np.random.Generator) -> str:
        return list(self.variants)[int(rng.integers(len(self.variants)))]


def fit(image: Image.Image, long_side: int) -> Image.Image:
    """Scale down so that the long side is at most `long_side` pixels; never up."""
    scale = long_side / max(image.size)
    return image if scale >= 1 else rescale(image, scale)


def _tier(image: Image.Image, rng: np.random.Generator, long_side: int, quality: int | None) -> Image.Image:
    small = fit(image, long_side)
    return small if quality is None else through_jpeg(small, quality)


def _jpeg(image: Image.Image, rng: np.random.Generator, quality: int) -> Image.Image:
    return through_jpeg(image, quality)


def _scale(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    return rescale(image, share).resize(image.size, Image.Resampling.LANCZOS)


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
    """A screenshot shared `times` times: resampled off the pixel grid, then JPEG 75."""
    for _ in range(times):
        image = through_jpeg(rescale(image, float(rng.uniform(0.8, 1.1))), 75)
    return image


def _text(image: Image.Image, rng: np.random.Generator, numbers: tuple[int, ...]) -> Image.Image:
    """One of these texts, at a size that is read, somewhere between top and bottom."""
    number, style = numbers[int(rng.integers(len(numbers)))], int(rng.integers(len(STYLES)))
    return overlay_text(image, number, float(rng.uniform(*SIZES)), float(rng.uniform()), style)


def _texts() -> dict[str, Change]:
    """A variant for each direction and kind of text."""
    numbers: dict[str, tuple[int, ...]] = {}
    for number in ASKED:
        name = f"{TEXTS[number].says}_{TEXTS[number].kind}"
        numbers[name] = (*numbers.get(name, ()), number)
    return {name: partial(_text, numbers=of_kind) for name, of_kind in numbers.items()}


def _align(image: Image.Image, rng: np.random.Generator, side: int) -> Image.Image:
    short = min(image.size)
    x, y = (image.width - short) // 2, (image.height - short) // 2
    square = image.resize((side, side), Image.Resampling.LANCZOS, box=(x, y, x + short, y + short))
    return through_jpeg(square, ALIGNED_QUALITY)


def aligned(side: int) -> Condition:
    """The centred square, scaled to `side` pixels, as a JPEG: format, size and aspect tell nothing any more."""
    return Condition("aligned", side, partial(_align, side=side))


ALIGNED_QUALITY = 90
TIERS = (
    Condition("tier", "clean", _same),
    Condition("tier", "web", partial(_tier, long_side=768, quality=60)),
    Condition("tier", "hard", partial(_tier, long_side=512, quality=40)),
    Condition("tier", "thumb", partial(_tier, long_side=128, quality=None)),
    Condition("tier", "typographic", variants=_texts()),
    Condition("tier", "hard_photos", variants=HARD, photos_only=True),
)
CURVES = (
    *(Condition("jpeg", quality, partial(_jpeg, quality=quality)) for quality in (95, 75, 50, 25)),
    *(Condition("scale", share, partial(_scale, share=share)) for share in (0.75, 0.5, 0.25)),
    *(Condition("blur", radius, partial(_blur, radius=radius)) for radius in (0.5, 1.0, 2.0)),
    *(Condition("noise", sigma, partial(_noise, sigma=sigma)) for sigma in (2.0, 5.0, 10.0)),
    *(Condition("crop", share, partial(_crop, share=share)) for share in (0.9, 0.75, 0.5)),
    *(Condition("screenshot", times, partial(_screenshot, times=times)) for times in (1, 2, 3)),
)
CONDITIONS = {condition.name: condition for condition in (*TIERS, *CURVES)}
UNITS = {
    "jpeg": "JPEG quality",
    "scale": "share of the size, scaled back",
    "blur": "radius of the blur in pixels",
    "noise": "standard deviation of the noise in grey levels",
    "crop": "remaining share of each side",
    "screenshot": "number of screenshots",
}
