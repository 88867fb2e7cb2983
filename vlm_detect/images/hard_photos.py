"""Photos that detectors take for generated, made from ordinary ones by stated operations.

    hard = HARD["night"](image, rng)       # numpy.random.Generator

Each keeps the size. They stand in for the real thing, and claim no more: a photo that was taken at night has noise of
its own sensor, this one has noise of ours. Order and strengths are fixed, so that figures can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Operation = Callable[[Image.Image, np.random.Generator], Image.Image]
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def night(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An eighth of the light, warm, with the noise of a high ISO, brightened again and smoothed as phones do."""
    light = _linear(image) / 8 * np.array([1.0, 0.85, 0.6], dtype=np.float32)
    electrons = rng.poisson(light * 800) + rng.normal(0, 4, light.shape)
    return _image(np.clip(electrons / 800, 0, 1) ** (1 / 2.2) * 1.5 * 255).filter(ImageFilter.MedianFilter(3))


def retouched(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Smoothed within edges, as skin is, then contrast, colour and a darker border."""
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(max(1.0, min(image.size) / 128))), np.float32)
    pixels = np.asarray(image, np.float32)
    detail = np.abs(pixels - smooth).max(-1, keepdims=True)
    kept = np.clip(detail / 24, 0, 1)  # edges stay, texture goes
    polished = ImageEnhance.Color(ImageOps.autocontrast(_image(kept * pixels + (1 - kept) * smooth), 1)).enhance(1.3)
    return _image(np.asarray(polished, np.float32) * (1 - 0.45 * _radius(image) ** 3)[..., None])


def product(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The middle cut out softly and put on white with a shadow, as shops show things."""
    radius = _radius(image)
    shape = np.clip((0.95 - radius) * 12, 0, 1)[..., None]
    shadow = 255 - 50 * np.clip(1 - np.roll(radius, image.height // 20, 0), 0, 1)[..., None]
    lit = np.asarray(ImageEnhance.Brightness(image).enhance(1.1), np.float32)
    return _image(shape * lit + (1 - shape) * shadow)


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo in the window of a program, shown smaller, with a bar, buttons and lines of text in grey."""
    width, height = image.size
    bar = max(1, height // 10)
    page = Image.new("RGB", image.size, (246, 246, 248))
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, width, bar), fill=(52, 54, 60))
    for i in range(3):
        draw.circle((bar * (0.6 + 0.7 * i), bar / 2), bar / 5, fill=((236, 95, 87), (245, 190, 79), (98, 197, 84))[i])
    for i in range(2):
        top = height - bar * (0.9 - 0.45 * i)
        end = width * float(rng.uniform(0.5, 0.9))
        draw.rectangle((width * 0.06, top, end, top + bar * 0.2), fill=(160, 162, 168))
    room = max(1, round(width * 0.88)), max(1, height - round(2.4 * bar))
    shown = ImageOps.contain(image, room, Image.Resampling.BILINEAR)
    page.paste(shown, ((width - shown.width) // 2, bar + max(0, (room[1] - shown.height) // 2) + bar // 4))
    return page


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black and white with more contrast and the grain of film."""
    light = np.asarray(image, np.float32) @ _LUMINANCE
    steep = 255 / (1 + np.exp(-(light - 127.5) / 38))
    return _image((steep + rng.normal(0, 9, steep.shape))[..., None].repeat(3, -1))


def long_exposure(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The light of a camera that moved along a line of a fifteenth of the longer side, added up."""
    light, steps = _linear(image), 24
    angle, way = float(rng.uniform(0, np.pi)), max(image.size) / 15
    total = np.zeros_like(light)
    for step in np.linspace(-0.5, 0.5, steps):
        moved = round(step * way * np.sin(angle)), round(step * way * np.cos(angle))
        total += _shifted(light, *moved)
    return _image((total / steps) ** (1 / 2.2) * 255)


HARD: dict[str, Operation] = {
    "night": night,
    "retouched": retouched,
    "product": product,
    "screenshot": screenshot,
    "grey": grey,
    "long_exposure": long_exposure,
}


def _linear(image: Image.Image) -> np.ndarray:
    """(H, W, 3) of light in [0, 1], by a gamma of 2.2."""
    return (np.asarray(image.convert("RGB"), np.float32) / 255) ** 2.2


def _radius(image: Image.Image) -> np.ndarray:
    """(H, W): 0 in the middle, 1 at the middle of each side."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in (image.height, image.width))
    return np.hypot(y[:, None], x[None, :])


def _shifted(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moved by whole pixels, borders repeated."""
    rows = np.clip(np.arange(pixels.shape[0]) - down, 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(pixels.shape[1]) - right, 0, pixels.shape[1] - 1)
    return pixels[rows][:, columns]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
