"""BMP files with masks of any form are shown as viewers show them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from vlm_detect.images.decode import ImageRejected, decode_image, upright_size

RED, GREY = (255, 0, 0), (0, 0, 0)


def bmp(
    masks: tuple[int, ...], bits: int, rows: list[list[int]], *, compression: int = 3, header: int = 40, top_down=False
) -> bytes:
    """A BMP of pixels that are packed by `masks`; `rows` from the top."""
    kind = {16: "H", 32: "I"}[bits]
    lines = [struct.pack(f"<{len(row)}{kind}", *row) for row in rows]
    lines = [line + b"\0" * (-len(line) % 4) for line in (lines if top_down else lines[::-1])]
    pixels, stated = b"".join(lines), struct.pack(f"<{len(masks)}I", *masks)
    height = -len(rows) if top_down else len(rows)
    info = struct.pack("<IiiHHIIiiII", header, len(rows[0]), height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    info += stated
    info += b"\0" * max(0, header - len(info))
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + pixels


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("masks", "bits", "rows", "options", "shown"),
    [
        (
            (0x3, 0x1C, 0x20),
            16,
            [[0x3, 0x1C, 0x20], [0x0, 0x3F, 0x4]],
            {},
            [[RED, (0, 255, 0), (0, 0, 255)], [GREY, (255,) * 3, (0, 36, 0)]],
        ),
        (
            (0xFFE00000, 0x1FFC00, 0x3FF),
            32,
            [[0xFFE00000, 0x3FF], [0x1FFC00, 0x0]],
            {},
            [[RED, (0, 0, 255)], [(0, 255, 0), GREY]],
        ),
        (
            (0xF00, 0xF0, 0xF, 0xF000),
            16,
            [[0xFF00, 0x0F00], [0xF00F, 0x800F]],
            {"header": 56},
            [[RED, (255,) * 3], [(0, 0, 255), (119, 119, 255)]],
        ),
        (
            (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
            32,
            [[0xFFFF0000, 0x0], [0x800000FF, 0xFF000000]],
            {"compression": 6},
            [[RED, (255,) * 3], [(127, 127, 255), GREY]],
        ),
        ((0xFF0000, 0xFF00, 0x3FC, 0), 32, [[0xFF0000, 0xFF00]], {"header": 56}, [[RED, (0, 255, 192)]]),
    ],
)
def test_any_colour_masks(masks, bits, rows, options, shown, top_down: bool) -> None:
    data = bmp(masks, bits, rows, top_down=top_down, **options)
    decoded = decode_image(data)
    assert np.asarray(decoded.image).tolist() == [[list(pixel) for pixel in row] for row in shown]
    assert (decoded.format, decoded.notes) == ("BMP", ())
    assert upright_size(data) == (len(rows[0]), len(rows))


def test_truncated_or_too_large_files_are_rejects() -> None:
    data = bmp((0x3, 0x1C, 0x20), 16, [[0x3, 0x1C, 0x20]] * 4)
    for broken in (data[:-3], data[:30]):
        with pytest.raises(ImageRejected):
            decode_image(broken)
    with pytest.raises(ImageRejected):
        decode_image(data, max_pixels=11)
