"""Convert pixels of any Pillow mode to RGB in sRGB: range, colour profile, transparency.

    image, notes = to_rgb(opened)      # of a file opened by Pillow, or of an image in memory

- Grey of more than 8 bits is scaled; 32-bit and float pixels have no defined range and are rejected.
- An ICC profile of the image's own colour space is converted to sRGB. An invalid profile, or one of another space, is
  ignored, as in browsers; CMYK is then converted by the simple formula.
- Transparency is composited over white.

`notes` list what was ignored, one short phrase each.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from vlm_detect.images.bounds import ImageRejected

PROFILE_PASSED_OVER = "its colour profile is invalid or of another colour space, and is ignored"
CMYK_BY_FORMULA = "CMYK without a colour profile, converted by the simple formula"
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0  # of _PHOTOMETRIC
# A profile's colour space (its bytes 16 to 20), and the pixel modes that it applies to.
_SPACES = {
    b"GRAY": {"1", "L", "LA", "La"},
    b"RGB ": {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"},
    b"CMYK": {"CMYK"},
    b"Lab ": {"LAB"},
}
_KNOWN_MODES = frozenset().union(*_SPACES.values())
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """(RGB in sRGB over white, notes); `ImageRejected` for pixels without a defined range or colour."""
    image.load()  # in some formats transparency is known only now
    alpha, profile = _alpha(image), image.info.get("icc_profile")
    image = _eight_bits(image)
    if image.mode not in _KNOWN_MODES:
        raise ImageRejected("colour_undefined", f"pixels of mode {image.mode} have no defined range or colour")
    notes = []
    colour = _by_profile(image, profile) if profile else None
    if colour is None:
        notes += [PROFILE_PASSED_OVER] if profile else []
        notes += [CMYK_BY_FORMULA] if image.mode == "CMYK" else []
        colour = _converted(image, _lab_profile()) if image.mode == "LAB" else _opaque(image)
    if alpha is not None and alpha.getextrema() != (255, 255):
        colour = Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)
    return colour, tuple(notes)


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of every pixel, of mode L; None for an image without transparency."""
    if not is_transparent(image):
        return None
    if image.mode.startswith("I;16"):  # Pillow drops their transparent colour in conversion
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of more bits to mode L, if its range is defined; Image.convert would clip it."""
    if image.mode == "I" and getattr(image, "format", None) == "PPM":
        white, inverted = 65535, False  # Pillow's reader scales PGM to this range
    elif image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        white, inverted = 2 ** int(tags.get(_BITS, (16,))[0]) - 1, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    else:
        return image
    values = np.asarray(image).astype(np.uint32).clip(0, white)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """`image` converted by its profile; None if the profile does not apply to such pixels."""
    space = profile[16:20]
    if image.mode not in _SPACES.get(space, ()):
        return None
    if space == b"GRAY":
        image = image.convert("L")
    elif space == b"RGB ":
        image = _opaque(image)
    try:
        return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _converted(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
    assert converted is not None  # only an in-place conversion returns nothing
    return converted


def _opaque(image: Image.Image) -> Image.Image:
    """RGB without alpha; Pillow converts a transparent palette entry, and premultiplied colours, via RGBA."""
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA").convert("RGB") if image.mode in {"P", "PA", "RGBa"} else image.convert("RGB")


@functools.cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _lab_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
