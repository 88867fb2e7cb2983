"""Image bytes to RGB pixels: decoded right, or rejected with a reason; never a crash, never a silently wrong colour.

    decoded = decode_image(Path("photo.jpg"))     # .image is RGB, upright and sRGB; .jpeg tells how it was compressed

The rules, each the one choice that a viewer of the photo would agree with:

- bytes, pixels, scans and processor time are bounded (`bounds.py`), before any pixel is decoded where the header tells;
- the EXIF orientation is applied first, then the ICC profile is converted to sRGB, then all metadata are dropped;
- 16-bit grey is scaled to 8 bit; 32-bit and float pixels have no stated range and are rejected;
- CMYK without a profile has no defined colour and is rejected;
- transparency is laid over white, as a browser does;
- animations and multi-page files are rejected, for which frame would be the photo? The further images inside a camera's
  MPO file are previews of the first, which is taken.

Formats that run a program to be read (EPS) or that are documents (PDF) are not opened at all.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, JpegImagePlugin

from vlm_detect.images.bounds import MAX_PIXELS, ImageRejected, open_bounded, read_bounded

# What files of these formats are called; used to find images in a folder, never to decide how one is decoded.
SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".webp",
        ".avif",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".jp2",
    ]
)


@dataclass(frozen=True)
class JpegEncoding:
    """How a JPEG was compressed: enough to compress another image the same way.

    `tables` are the quantisation tables as Pillow gives and takes them; `subsampling` is Pillow's 0 (4:4:4), 1 (4:2:2),
    2 (4:2:0) or -1 (another, or grey); `quality` is the libjpeg quality whose standard tables come nearest, 1 to 100.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    quality: int


@dataclass(frozen=True)
class DecodedImage:
    """An image ready to use and the facts of its file; `width` and `height` are those after the orientation."""

    image: Image.Image
    format: str
    width: int
    height: int
    sha256: str
    jpeg: JpegEncoding | None
    is_plain: bool  # the file's own pixels are these: no turning, colour conversion or blending was needed


def decode_image(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a file or its bytes to RGB, or raise `ImageRejected`."""
    data = source if isinstance(source, bytes) else read_bounded(Path(source))
    with open_bounded(data, max_pixels=max_pixels) as opened:
        return _decode_opened(opened, data)


def _decode_opened(opened: ImageFile.ImageFile, data: bytes) -> DecodedImage:
    file_format = str(opened.format)
    # Not `n_frames`, which goes through all the frames of a GIF or the pages of a TIFF.
    if getattr(opened, "is_animated", False) and file_format != "MPO":
        raise ImageRejected("animated", "more than one frame or page")
    jpeg = _jpeg_encoding(opened)
    opened.load()
    profile = opened.info.get("icc_profile")
    upright = ImageOps.exif_transpose(opened)
    is_upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
    is_plain = is_upright and opened.mode in ("RGB", "L") and "transparency" not in opened.info
    image = _to_rgb(upright, profile)
    if profile and is_plain:
        # Half of the profiles in the wild are sRGB itself, and converting by them does nothing but round.
        stored = opened.convert("RGB")
        is_plain = bool(np.abs(np.asarray(stored, np.int16) - np.asarray(image, np.int16)).max() <= 1)
        image = stored if is_plain else image
    image.info.clear()
    return DecodedImage(
        image=image,
        format="JPEG" if file_format == "MPO" else file_format,
        width=image.width,
        height=image.height,
        sha256=hashlib.sha256(data).hexdigest(),
        jpeg=jpeg,
        is_plain=is_plain,
    )


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any mode of Pillow to RGB in sRGB, by the rules at the head of this file."""
    if image.mode.startswith("I;16"):
        # Image.convert would clip instead of scaling; 65535 / 255 is exactly 257
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8), "L")
    if image.mode == "CMYK":
        if not profile:
            raise ImageRejected("colour_undefined", "CMYK without an ICC profile")
        return _to_srgb(image, profile)
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}:
        raise ImageRejected("colour_undefined", f"pixels of mode {image.mode} have no stated range or colour")
    has_alpha = image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info
    alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
    if profile:
        grey_profile = image.mode in {"1", "L", "LA"} and profile[16:20] == b"GRAY"
        colour = image.convert("L") if grey_profile else _opaque(image)
        colour = _to_srgb(colour, profile)
    else:
        colour = _opaque(image)
    if alpha is not None and alpha.getextrema() != (255, 255):
        colour = Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)
    return colour


def _opaque(image: Image.Image) -> Image.Image:
    """RGB without its alpha; by way of RGBA, for Pillow maps a transparent palette entry wrongly otherwise."""
    return image.convert("RGBA").convert("RGB") if image.mode in {"P", "PA"} else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise ImageRejected("colour_undefined", f"the ICC profile cannot be applied: {error}") from error
    assert converted is not None  # only an in-place conversion returns nothing
    return converted


@functools.cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _jpeg_encoding(opened: Image.Image) -> JpegEncoding | None:
    if not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    tables = tuple(tuple(opened.quantization[i]) for i in sorted(opened.quantization))
    return JpegEncoding(tables, JpegImagePlugin.get_sampling(opened), estimate_quality(tables[0])) if tables else None


@functools.lru_cache(maxsize=1024)  # a set's files share a few tables
def estimate_quality(luminance_table: tuple[int, ...]) -> int:
    """The libjpeg quality (1 to 100) whose luminance table is nearest in mean absolute difference.

    Exact for files written by libjpeg and Pillow; a camera's or Photoshop's own tables have no quality number, and the
    nearest is what they amount to. Of equal distances the highest quality is taken.
    """
    differences = np.abs(_standard_tables() - np.array(luminance_table)).mean(axis=1)  # (100,)
    return 100 - int(np.argmin(differences[::-1]))


@functools.cache
def _standard_tables() -> np.ndarray:
    """(100, 64): the luminance table of each quality, read back from Pillow's own files so that the order agrees."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            tables.append(image.quantization[0])
    return np.array(tables)


def standard_encoding(quality: int) -> JpegEncoding:
    """What libjpeg does at `quality` by default: its own tables, chroma at half resolution."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        encoding = _jpeg_encoding(image)
    assert encoding is not None
    return encoding
