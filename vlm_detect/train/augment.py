"""Augmentations, sampled once for both members of a unit: a photo and its twin are augmented alike.

    augmentation = sample_augmentation(["flip", "jpeg"], rng)          # sampled parameters
    AugmentedImage.from_image(image, augmentation).open()

If a photo and its twin were augmented differently, the augmentation would tell them apart (AlignedForensics). flip and
rotate move pixels and leave every trace of a generator as it is; the others imitate processing of images on
their way, and remove the traces that do not survive it. typographic overlays a text on both that supports one of the
labels, so that texts do not predict the label. erase hides a quarter of the image, so that no single place is enough
(Cutout, arXiv 1708.04552). Strengths are sampled relative to an image's size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vlm_detect.errors import UserError
from vlm_detect.images.encode import through_jpeg
from vlm_detect.images.stored import StoredImage
from vlm_detect.images.typographic import LEARNED, SIZES, STYLES, overlay_text
from vlm_detect.images.views import crop, rescale
from vlm_detect.train.options import AUGMENTATIONS

Transpose = Image.Transpose
_TURNS = (Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)
_SATURATION = 8.0  # of the published view at 32x32 pixels
_GREY = (128, 128, 128)


def flip(image: Image.Image) -> Image.Image:
    return image.transpose(Transpose.FLIP_LEFT_RIGHT)


def rotate(image: Image.Image, quarters: int) -> Image.Image:
    return image.transpose(_TURNS[quarters - 1])


def blur(image: Image.Image, radius: float) -> Image.Image:
    """`radius` in pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def noise(image: Image.Image, sigma: float, seed: int) -> Image.Image:
    """Gaussian noise of `sigma` grey levels; images of equal size get equal noise."""
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def invert_saturate(image: Image.Image) -> Image.Image:
    """The view of the colour-space method: the negative, strongly saturated."""
    return ImageEnhance.Color(ImageOps.invert(image)).enhance(_SATURATION)


def erase(image: Image.Image, down: float, right: float) -> Image.Image:
    """A grey rectangle of half the sides; its centre is at (`down`, `right`), parts of the image's height and width."""
    height, width = image.height // 2, image.width // 2
    top, left = round(down * image.height) - height // 2, round(right * image.width) - width // 2
    erased = image.copy()
    erased.paste(_GREY, (left, top, left + width, top + height))
    return erased


_APPLY: dict[str, Callable[..., Image.Image]] = {
    "flip": flip,
    "rotate": rotate,
    "crop": crop,
    "rescale": rescale,
    "blur": blur,
    "noise": noise,
    "jpeg": through_jpeg,
    "invert_saturate": invert_saturate,
    "typographic": overlay_text,
    "erase": erase,
}
Augmentation = tuple[tuple[str, tuple[float, ...]], ...]  # (name, its arguments) in the order of application


@dataclass(frozen=True)
class AugmentedImage(StoredImage):
    """A stored image that opens with an augmentation applied."""

    augmentation: Augmentation = ()

    @classmethod
    def from_image(cls, image: StoredImage, augmentation: Augmentation) -> StoredImage:
        return cls(image.content, image.name, augmentation) if augmentation else image

    @property
    def key(self) -> str:
        return f"{super().key} {self.augmentation}" if self.augmentation else super().key

    def open(self) -> Image.Image:
        image = super().open()
        for name, arguments in self.augmentation:
            image = _APPLY[name](image, *arguments)
        return image


@dataclass(frozen=True)
class Views(Sequence[StoredImage]):
    """All combinations of `images` and `augmentations`."""

    images: Sequence[StoredImage]
    augmentations: Sequence[Augmentation]

    def __len__(self) -> int:
        return len(self.images) * len(self.augmentations)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image, view = divmod(index, len(self.augmentations))
        return AugmentedImage.from_image(self.images[image], self.augmentations[view])


def check_augmentations(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise UserError(f"--augment {' '.join(unknown)}: unknown; choose from {', '.join(AUGMENTATIONS)}")


def sample_augmentation(names: Sequence[str], rng: random.Random) -> Augmentation:
    """Sample the augmentations of one unit, each of `names` with probability 1/2.

    All parameters are sampled even if unused, so that one choice does not shift the random stream of another.
    """
    arguments: dict[str, tuple[float, ...]] = {
        "flip": (),
        "rotate": (rng.randint(1, 3),),
        "crop": (round(rng.uniform(0.7, 1.0), 3), round(rng.random(), 3), round(rng.random(), 3)),
        "rescale": (round(rng.uniform(0.5, 1.25), 3),),
        "blur": (round(rng.uniform(0.2, 1.5), 3),),
        "noise": (round(rng.uniform(1.0, 8.0), 3), rng.getrandbits(32)),
        "jpeg": (rng.randint(40, 95),),
        "invert_saturate": (),
    }
    happens = {name: rng.random() < 0.5 for name in AUGMENTATIONS if name != "erase"}
    size, place = round(rng.uniform(*SIZES), 3), round(rng.random(), 3)
    arguments["typographic"] = (rng.choice(LEARNED), size, place, rng.randrange(len(STYLES)))
    # What came later is sampled last: earlier runs and caches get the same augmentations.
    happens["erase"] = rng.random() < 0.5
    arguments["erase"] = (round(rng.random(), 3), round(rng.random(), 3))
    return tuple((name, arguments[name]) for name in AUGMENTATIONS if happens[name] and name in names)
