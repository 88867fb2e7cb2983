"""Decode image bytes to RGB pixels as a viewer shows them, or reject them with a reason; never crash.

    decoded = decode_image(Path("photo.jpg"))     # .image is upright RGB in sRGB; .notes list peculiarities

All code in the package gets pixels from here, so that an image is the same in training, evaluation and inference. The
rules:

- bytes, pixels, scans and CPU time are bounded (`bounds.py`), as far as possible from the header, before decoding;
- formats whose decoders cannot be stopped (TIFF, JPEG 2000, AVIF, HEIF) are decoded in another process (`isolated.py`);
- the EXIF orientation is applied, colours are converted to sRGB over white (`colour.py`), then all metadata are
  dropped;
- of an animation, a multi-page file or a camera's MPO the first image is used, which a viewer shows first;
- unreadable metadata (an invalid profile or EXIF block, texts of megabytes) do not affect the pixels;
- what no viewer can show is rejected: other files, a truncated file, pixels without a defined range or colour.

Formats that need an external program (EPS) or that are documents (PDF) are not opened at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile

from vlm_detect.images.bmp import with_plain_colours
from vlm_detect.images.bounds import (
    MAX_PIXELS,
    ImageRejected,
    check_has_reader,
    is_decoded_in_one_call,
    open_bounded,
    read_bounded,
)
from vlm_detect.images.colour import is_transparent, to_rgb
from vlm_detect.images.isolated import Reply, shared_decoder
from vlm_detect.images.jpeg import JpegEncoding, jpeg_encoding
from vlm_detect.images.strip_metadata import bare_bytes, shown_chunks

# The version of these rules: stored with everything computed from pixels.
DECODER = 2
FIRST_OF_SEVERAL = "an animation or a multi-page file, of which the first image is used"
UNREAD_EXIF = "its EXIF data cannot be read and are ignored"
UNREAD_METADATA = "metadata that cannot be read are ignored"
# Suffixes of these formats; used to find images in a folder, never to choose a decoder.
SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
        *(".heic", ".heif", ".hif"),
    ]
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and facts about its file; `width` and `height` are after applying the orientation."""

    image: Image.Image
    format: str
    width: int
    height: int
    sha256: str
    jpeg: JpegEncoding | None
    is_plain: bool  # the file's pixels are unchanged: no rotation, colour conversion or compositing
    notes: tuple[str, ...] = ()  # peculiarities of the file, in words


def decode_image(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a file or its bytes to RGB, or raise `ImageRejected`."""
    data = source if isinstance(source, bytes) else read_bounded(Path(source))
    if not is_decoded_in_one_call(data):
        return decode_here(data, max_pixels=max_pixels)
    check_has_reader(data)
    with shared_decoder() as decoder:
        return decoded_of(decoder.decode(data, max_pixels=max_pixels))


def decode_here(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """As `decode_image`, but in this process for every format."""
    try:
        return _decode(data, data, max_pixels)
    except ImageRejected as rejected:
        if rejected.reason not in ("unreadable", "not_an_image"):
            raise
        if (plain := with_plain_colours(data, max_pixels=max_pixels)) is not None:
            return _decode(plain, data, max_pixels)
        # Pillow fails on some metadata that viewers ignore.
        for less in _with_less_metadata(data):
            try:
                return _decode(less, data, max_pixels, UNREAD_METADATA)
            except ImageRejected:
                continue
        raise


def decoded_of(reply: Reply) -> DecodedImage:
    """Decode in a separate process."""
    facts = {name: reply.header[name] for name in ("format", "width", "height", "sha256", "is_plain")}
    jpeg = reply.header["jpeg"]
    if jpeg is not None:
        jpeg = JpegEncoding(tuple(map(tuple, jpeg["tables"])), jpeg["subsampling"], jpeg["quality"])
    return DecodedImage(image=reply.image, jpeg=jpeg, notes=tuple(reply.header["notes"]), **facts)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the result of `decode_image`, read from the header; `ImageRejected` as there."""
    try:
        with open_bounded(data) as opened:
            width, height = opened.size
            turned = opened.format != "TIFF" and _orientation(opened, []) in _SIDEWAYS
            return (height, width) if turned else (width, height)
    except ImageRejected:
        decoded = decode_image(data)
        return decoded.width, decoded.height


def is_plainly_stored(data: bytes) -> bool:
    """Whether a header states neither an orientation, transparency, a colour profile nor more than 8 bits.

    No rule of this file changes the pixels of such an image, in any version of `DECODER`.
    """
    try:
        with open_bounded(data) as opened:
            shown_as_stored = opened.mode in ("1", "L", "P", "RGB") and _orientation(opened, []) not in _TURNS
            return shown_as_stored and not opened.info.keys() & {"transparency", "icc_profile"}
    except ImageRejected:
        return False


def _decode(data: bytes, whole: bytes, max_pixels: int, *notes: str) -> DecodedImage:
    """Decode `data`, the file `whole` with some metadata removed."""
    with open_bounded(data, max_pixels=max_pixels) as opened:
        found = list(notes)
        file_format = str(opened.format)
        # Not `n_frames`, which reads all frames of a GIF or pages of a TIFF.
        is_animated = file_format != "MPO" and bool(getattr(opened, "is_animated", False))
        found += [FIRST_OF_SEVERAL] if is_animated else []
        jpeg = jpeg_encoding(opened)
        if file_format == "PNG":
            _fix_transparent_colour(opened, data)
        shown = shown_pixels(opened)
        image = shown.image
        is_plain = opened.mode in ("RGB", "L") and not (shown.is_turned or is_transparent(opened) or is_animated)
        if is_plain and opened.info.get("icc_profile"):
            # Half of all profiles are sRGB itself, and converting by them only rounds.
            stored = opened.convert("RGB")
            is_plain = bool(np.abs(np.asarray(stored, np.int16) - np.asarray(image, np.int16)).max() <= 1)
            image = stored if is_plain else image
    image.info.clear()
    return DecodedImage(
        image=image,
        format="JPEG" if file_format == "MPO" else file_format,
        width=image.width,
        height=image.height,
        sha256=hashlib.sha256(whole).hexdigest(),
        jpeg=jpeg,
        is_plain=is_plain,
        notes=tuple(dict.fromkeys([*found, *shown.notes])),
    )


class ShownPixels(NamedTuple):
    """RGB, whether the orientation changed it, and notes."""

    image: Image.Image
    is_turned: bool
    notes: tuple[str, ...]


def shown_pixels(opened: Image.Image) -> ShownPixels:
    """Convert an image opened by Pillow, or in memory, to upright RGB in sRGB over white."""
    notes: list[str] = []
    orientation = _orientation(opened, notes)
    image, passed_over = to_rgb(opened)
    if orientation in _TURNS and opened.format != "TIFF":  # Pillow rotates it when loading
        image = image.transpose(_TURNS[orientation])
    return ShownPixels(image, orientation in _TURNS, (*notes, *passed_over))


def _with_less_metadata(data: bytes) -> Iterator[bytes]:
    """The file with only the metadata that affect its display, then with pixels only."""
    for less in (shown_chunks(data), bare_bytes(data)):
        if less is not None:
            yield less


def _orientation(opened: Image.Image, notes: list[str]) -> int:
    """The EXIF orientation; 1 (unchanged) if there is none."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow's reader raises nearly any exception on an invalid block.
    except Exception:
        notes.append(UNREAD_EXIF)
        return 1
    return orientation if isinstance(orientation, int) else 1


def _fix_transparent_colour(opened: ImageFile.ImageFile, data: bytes) -> None:
    """Convert a PNG's transparent colour to eight bits, because Pillow converts only the pixels."""
    depth, key = data[24], opened.info.get("transparency")
    if opened.mode == "L" and depth < 8 and isinstance(key, int):
        opened.info["transparency"] = key * 255 // (2**depth - 1)
    elif opened.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        opened.info["transparency"] = tuple(value >> 8 for value in key)
