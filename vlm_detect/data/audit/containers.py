"""Facts of an image file other than its pixels, read from its structure without decoding.

Every fact here is independent of content: two images written by the same program with the same settings have the same
facts. (File size is not: a smooth image compresses better.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import ExifTags

from vlm_detect.images.bounds import open_bounded

# Parts of a file: the marker (and the start of its payload) in a JPEG, the chunk in a PNG or WebP.
_JPEG_BLOCKS = (
    (0xE0, b"JFIF", "JFIF"),
    (0xE1, b"Exif", "EXIF"),
    (0xE1, b"http://ns.adobe.com/x", "XMP"),
    (0xE2, b"ICC_PROFILE", "ICC"),
    (0xE2, b"MPF", "MPF"),
    (0xEB, b"", "C2PA"),
    (0xED, b"", "IPTC"),
    (0xEE, b"", "Adobe"),
    (0xFE, b"", "comment"),
)
_PNG_BLOCKS = {b"eXIf": "EXIF", b"iCCP": "ICC", b"caBX": "C2PA", b"tEXt": "text", b"zTXt": "text", b"iTXt": "text"}
_WEBP_BLOCKS = {b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": "ICC", b"C2PA": "C2PA"}
_ENCODER_BLOCKS = {"JFIF", "Adobe"}  # written by the encoder itself, not informative about a camera or a generator
_STANDARD_HUFFMAN = 420  # payload bytes of libjpeg's four default tables (not optimized for the image)


@dataclass
class Container:
    """`encoding` is how the image was written, `metadata` what is embedded in the file, `outside` the size of that in
    bytes."""

    format: str
    size: tuple[int, int]  # width, height, as stored
    encoding: dict[str, str | float] = field(default_factory=dict)
    metadata: dict[str, str | float] = field(default_factory=dict)
    outside: int = 0


def read_container(data: bytes) -> Container:
    """The facts of a file; `ImageRejected` for one that cannot be opened within bounds."""
    with open_bounded(data) as opened:
        container = Container(str(opened.format), opened.size)
        container.encoding = {"colour": opened.mode}
        exif = {tag: opened.getexif().get(tag) for tag in (ExifTags.Base.Make, ExifTags.Base.Software)}
        software = opened.info.get("Software")
    if container.format in {"JPEG", "MPO"}:
        _read_jpeg(data, container)
    elif container.format == "PNG":
        _read_chunks(container, _png_chunks(data), _PNG_BLOCKS)
    elif container.format == "WEBP":
        _read_chunks(container, _webp_chunks(data), _WEBP_BLOCKS)
    named = {"camera": exif[ExifTags.Base.Make], "software": exif[ExifTags.Base.Software] or software}
    container.metadata |= {key: str(value).strip()[:40] for key, value in named.items() if value}
    return container


def _read_jpeg(data: bytes, container: Container) -> None:
    encoding, huffman = container.encoding, 0
    for marker, payload in _jpeg_segments(data):
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            container.outside += len(payload) + 4
            known = (name for code, head, name in _JPEG_BLOCKS if code == marker and payload.startswith(head))
            name = next(known, f"APP{marker - 0xE0}")
            if name in _ENCODER_BLOCKS:
                encoding[name] = payload[:14].hex()  # of JFIF with its version and density
            else:
                container.metadata[name] = 1.0
        elif marker == 0xC4:
            huffman += len(payload)
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC8, 0xCC}:
            encoding["process"] = "progressive" if marker == 0xC2 else "baseline" if marker == 0xC0 else hex(marker)
            encoding["components"] = float(payload[5])
        elif marker == 0xDD:
            encoding["restarts"] = 1.0
    if encoding.get("process") == "baseline" and encoding.get("components") == 3.0:
        encoding["Huffman tables"] = "standard" if huffman in {_STANDARD_HUFFMAN - 4, _STANDARD_HUFFMAN} else "own"
    end = data.rfind(b"\xff\xd9")
    trailer = len(data) - end - 2 if end >= 0 else 0
    if trailer > 0:
        container.outside += trailer
        container.metadata["bytes after the end"] = 1.0


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, payload) of every segment before the first scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


def _read_chunks(container: Container, chunks: Iterator[tuple[bytes, bytes]], blocks: dict[bytes, str]) -> None:
    largest = 0
    for name, payload in chunks:
        if name == b"IHDR":
            container.encoding |= {"bits": float(payload[8]), "interlaced": float(payload[12])}
        elif name == b"IDAT":
            if not largest:
                container.encoding["compression"] = float(payload[1] >> 6)  # zlib's own note of its level, 0 to 3
            largest = max(largest, len(payload))
        elif name in {b"VP8 ", b"VP8L"}:
            container.encoding["process"] = "lossless" if name == b"VP8L" else "lossy"
        elif name not in {b"IEND", b"PLTE", b"VP8X", b"ALPH"}:
            container.outside += len(payload) + 8
            container.metadata[blocks.get(name, name.decode("latin-1"))] = 1.0


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name = data[place + 4 : place + 8]
        yield name, data[place + 8 : place + 8 + length]
        place += length + 12
        if name == b"IEND":
            break
    if place < len(data):
        yield b"bytes after the end", data[place:]


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(data):
        (length,) = struct.unpack("<I", data[place + 4 : place + 8])
        yield data[place : place + 4], data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
