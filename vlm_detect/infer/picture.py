"""A picture: what a detector judges, decoded within bounds, with what its file says of itself.

picture = open_picture("photo.jpg")        # also bytes, a Pillow image, or an array of pixels
picture.image, picture.provenance, picture.notes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import MAX_PIXELS, ImageRejected, read_bounded
from vlm_detect.images.decode import DecodedImage, decode_image, decoded_of, shown_pixels
from vlm_detect.images.isolated import Reply
from vlm_detect.images.provenance import Fact, provenance


@dataclass(frozen=True)
class Picture:
    """A decoded image, its file's metadata, and notes on anything unusual about the file."""

    image: Image.Image
    provenance: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
    jpeg_quality: int | None = None  # JPEG quality, 1 to 100; measures compare images of similar quality


Openable = Image.Image | np.ndarray | Picture | bytes | str | Path


def open_picture(source: Openable, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an image within bounds: a file, its bytes, a Pillow image, or an array of pixels; UserError otherwise.

    An array is uint8 of shape (H, W), (H, W, 3) or (H, W, 4): grey, RGB or RGBA.
    """
    if isinstance(source, Picture):
        return source
    try:
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            shown = shown_pixels(source)
            return Picture(shown.image, notes=shown.notes)
        if isinstance(source, bytes):
            return decode_picture(source, max_pixels)
        if not Path(source).is_file():
            raise UserError(f"{source}: no such file")
        return decode_picture(read_bounded(Path(source)), max_pixels)
    except ImageRejected as error:
        name = str(source) if isinstance(source, str | Path) else "image"
        raise UserError(f"{name}: {error}") from error
    except (OSError, SyntaxError) as error:  # an opened Pillow image that cannot be loaded
        raise UserError(f"image: unreadable: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        given = f"an array of shape {pixels.shape} and {pixels.dtype}"
        raise UserError(f"{given} is not an image: give uint8 of shape (H, W), (H, W, 3) or (H, W, 4)")
    if not pixels.size:
        raise UserError(f"an array of shape {pixels.shape} has no pixels")
    return Image.fromarray(pixels)


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """The bytes of an image file; `ImageRejected` where they cannot be used."""
    return _picture(decode_image(data, max_pixels=max_pixels), provenance(data))


def picture_of(reply: Reply) -> Picture:
    """The same from a decoder's process, which was asked for the facts of the file."""
    return _picture(decoded_of(reply), tuple(Fact(**fact) for fact in reply.header["facts"]))


def _picture(decoded: DecodedImage, facts: tuple[Fact, ...]) -> Picture:
    return Picture(decoded.image, facts, decoded.notes, decoded.jpeg.quality if decoded.jpeg else None)
