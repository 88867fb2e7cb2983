"""Remove metadata from an image file without changing its compressed pixels.

    bare = bare_bytes(data)      # JPEG without EXIF, XMP, ICC, C2PA, comments and thumbnails; PNG with pixels only
    shown_chunks(data)           # PNG with the metadata that affect its display: orientation and colour profile

For published sets, whose pixels re-encoding would change. It supports two formats; anything else, or a malformed file,
gives None and has to be re-encoded.
"""

from __future__ import annotations

import struct
import zlib

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # version 1.1, no density, no thumbnail
_ADOBE, _COMMENT, _END, _SCAN = 0xEE, 0xFE, 0xD9, 0xDA
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_SHOWN_CHUNKS = frozenset({b"eXIf", b"iCCP"})


def bare_bytes(data: bytes) -> bytes | None:
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(_PNG):
        return _bare_png(data)
    return None


def shown_chunks(data: bytes) -> bytes | None:
    """A PNG without metadata except its EXIF block and colour profile, if their checksums are valid."""
    return _bare_png(data, _SHOWN_CHUNKS) if data.startswith(_PNG) else None


def _bare_jpeg(data: bytes) -> bytes | None:
    """The segments except APPn and comments; JFIF's header is normalized, Adobe's is kept, because it defines the
    colour space."""
    kept, at = [b"\xff\xd8"], 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return b"".join([*kept, b"\xff\xd9"])
        end = at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        segment = data[at:end]
        if marker == 0xE0 and segment[4:8] == b"JFIF":
            kept.append(_JFIF)
        elif not (0xE0 <= marker <= 0xEF or marker == _COMMENT) or marker == _ADOBE:
            kept.append(segment)
        at = end
        if marker == _SCAN:
            end = _end_of_scan(data, at)
            kept.append(data[at:end])
            at = end
    return b"".join([*kept, b"\xff\xd9"]) if data[at : at + 2] == b"\xff\xd9" else None


def _end_of_scan(data: bytes, at: int) -> int:
    """The position of the next marker: in compressed data 0xFF is followed by 0x00 or a restart marker."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] != 0x00 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    return len(data)


def _bare_png(data: bytes, also: frozenset[bytes] = frozenset()) -> bytes | None:
    """The pixel chunks, and the chunks of `also` with a valid checksum."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at : at + 12 + length]
        is_sound = name in also and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if name in _PNG_CHUNKS or is_sound:
            kept.append(chunk)
        if name == b"IEND":
            return b"".join(kept)
        at += 12 + length
    return None
