"""Bounds on decoding a file: its bytes, pixels, scans and seconds.

    with open_bounded(data) as opened:      # a Pillow image whose header is within bounds
        opened.load()                       # raises `ImageRejected` if it takes too long

A file of a few kilobytes can cause minutes of work: a progressive JPEG processes all pixels once per scan, an animation
may have any number of frames, and some decoders read byte by byte. What the header states is checked there; the rest is
bounded by the CPU time of the decoding thread, which does not depend on the load of the machine.

The time is checked whenever Pillow reads from the file. A decoder that reads all bytes at once (AVIF, JPEG 2000, TIFF)
cannot be stopped that way: `decode.py` runs these in a process that can be killed.
"""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageFile

from vlm_detect.errors import UserError
from vlm_detect.extras import how_to_install

MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024**2
MAX_SCANS = 100  # usual encoders write up to about 20
MAX_SCANNED_PIXELS = 2_000_000_000  # scans x pixels of a JPEG; about 5 ms per scan and megapixel
MAX_DECODE_S = 30.0  # of CPU time
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# The brands at the beginning of files of these two formats, and how to install a missing reader.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_READERS = {"HEIF": how_to_install("heif"), "AVIF": "install a Pillow with AVIF, such as its official wheels"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_MARKER = re.compile(rb"\xff+([^\x00\xff])")


class ImageRejected(UserError):
    """The image cannot be used. `reason` is one of a few countable words, `detail` has specifics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both in args, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def read_bounded(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `max_bytes`, or `ImageRejected`.

    A device or a pipe has no size and may never end: it is not read, and opening one does not wait for a writer.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ImageRejected("unreadable", "not a regular file")
            if found.st_size <= max_bytes:
                # The file may grow while it is read, and files in /proc state no size.
                data = file.read(max_bytes + 1)
                if len(data) <= max_bytes:
                    return data
            raise ImageRejected("too_large", f"{max(found.st_size, max_bytes + 1)} bytes, at most {max_bytes}")
    except ImageRejected:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise ImageRejected("unreadable", getattr(error, "strerror", None) or str(error)) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def open_bounded(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_seconds: float = MAX_DECODE_S
) -> Iterator[ImageFile.ImageFile]:
    """The bytes of an image file, opened by Pillow; `ImageRejected` for what exceeds the bounds or is not an image."""
    if not data:
        raise ImageRejected("empty", "the file is empty")
    stream = _TimedBytes(data, max_seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about what is checked here
            with Image.open(stream, formats=readable_formats()) as opened:
                _check_header(opened, data, max_pixels)
                yield opened
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected("too_large", str(error)) from error
    # Pillow's decoders raise nearly any exception on malicious bytes; all of them mean the same here.
    except Exception as error:
        if stream.is_late:  # some readers turn an exception of the stream into another
            raise stream.rejection() from error
        if isinstance(error, Image.UnidentifiedImageError):
            check_has_reader(data)
            raise ImageRejected("not_an_image", "unknown image format") from error
        truncated = "truncated" in str(error).lower()
        raise ImageRejected("truncated" if truncated else "unreadable", f"{type(error).__name__}: {error}") from error


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """The readable formats of `FORMATS` in this installation, by Pillow's names."""
    Image.init()  # by default Pillow registers only a few formats
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_decoded_in_one_call(data: bytes) -> bool:
    """Whether the format's decoder reads all bytes at once, so that it cannot be stopped by a time limit."""
    tiff = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    jpeg2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
    return data.startswith(tiff + jpeg2000) or data[4:8] == b"ftyp"


def check_has_reader(data: bytes) -> None:
    """Raise `ImageRejected` for a format that needs an extra."""
    kind = _BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None
    if kind and kind not in readable_formats():
        raise ImageRejected("needs_extra", f"{kind} cannot be read: {_READERS[kind]}")


class _TimedBytes(io.BytesIO):
    """A stream that can be read until the thread has used `max_seconds` of CPU time since it was opened."""

    def __init__(self, data: bytes, max_seconds: float) -> None:
        super().__init__(data)
        self._max_seconds = max_seconds
        self._end = time.thread_time() + max_seconds
        self.is_late = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.is_late = self.is_late or time.thread_time() > self._end
        if self.is_late:
            raise self.rejection()
        return super().read(size)

    def rejection(self) -> ImageRejected:
        return ImageRejected("too_slow", f"not decoded within {self._max_seconds:g} s of CPU time")


def _check_header(opened: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise ImageRejected("too_large", f"{width}x{height} pixels, at most {max_pixels} in total")
    if opened.format in ("JPEG", "MPO"):
        scans = count_scans(data)
        if scans > MAX_SCANS:
            raise ImageRejected("too_slow", f"a JPEG of {scans} scans, at most {MAX_SCANS}")
        if scans * width * height > MAX_SCANNED_PIXELS:
            detail = f"{scans} scans of {width}x{height} pixels, at most {MAX_SCANNED_PIXELS} pixels in all scans"
            raise ImageRejected("too_slow", detail)
    if opened.format == "TIFF":
        # A tile is decoded completely, even for a small image.
        tags = getattr(opened, "tag_v2", {})
        tile = int(tags.get(_TILE_WIDTH, 1)) * int(tags.get(_TILE_LENGTH, 1))
        if tile > max_pixels:
            raise ImageRejected("too_large", f"a tile of {tile} pixels, at most {max_pixels}")


def count_scans(data: bytes) -> int:
    """The number of scans of a JPEG: the start-of-scan markers up to the end of the image.

    Markers are parsed as in libjpeg, because a thumbnail, or a video after the image, may contain the same bytes.
    """
    if data.count(b"\xff\xda") <= 1:
        return data.count(b"\xff\xda")
    scans, position = 0, 2
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:  # these have no length
            position += int.from_bytes(data[position : position + 2], "big")
    return scans
