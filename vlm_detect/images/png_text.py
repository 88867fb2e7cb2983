"""Read the text chunks of a PNG within bounds: of a workflow of megabytes only the beginning.

for key, text in png_texts(data): ...
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
MAX_TEXTS = 64
MAX_BYTES = 1 << 16  # of one text, decompressed


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of each chunk up to the end of the image; empty for other files."""
    at = len(PNG) if data.startswith(PNG) else len(data)
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield name, data[at + 8 : at + 8 + length]
        if name == b"IEND":
            return
        at += 12 + length


def png_texts(data: bytes) -> Iterator[tuple[str, str]]:
    """(key, text) of the first texts; one that cannot be decompressed is skipped."""
    count = 0
    for name, content in png_chunks(data):
        if name in (b"tEXt", b"zTXt", b"iTXt") and count < MAX_TEXTS:
            count += 1
            key, _, rest = content.partition(b"\0")
            if (text := _text(name, rest)) is not None:
                yield key.decode("latin-1"), text


def _text(name: bytes, rest: bytes) -> str | None:
    if name == b"tEXt":
        return rest[:MAX_BYTES].decode("latin-1")
    if name == b"zTXt":
        inflated = _inflated(rest[1:])
        return None if inflated is None else inflated.decode("latin-1")
    compressed, _, rest = rest[:1], rest[1:2], rest[2:]
    _, _, text = rest.partition(b"\0")[2].partition(b"\0")  # after the language and the translated key
    plain = _inflated(text) if compressed == b"\1" else text[:MAX_BYTES]
    return None if plain is None else plain.decode("utf-8", "replace")


def _inflated(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, MAX_BYTES)
    except zlib.error:
        return None
