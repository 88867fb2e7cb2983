"""BMP files whose colours are packed by masks that Pillow does not know, as the plain BMP that it reads.

    plain = with_plain_colours(data, max_pixels=100_000_000)      # None where that is not what is odd about the file

Any three or four masks may be stated for 16 and 32 bits a pixel (BI_BITFIELDS, BI_ALPHABITFIELDS); viewers show them
all. The layout is that of Microsoft's BITMAPV4HEADER.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

_HEADER = struct.Struct("<IiiHHI")  # size, width, height, planes, bits a pixel, compression
_BITFIELDS, _ALPHA_BITFIELDS = 3, 6
_MASKS_AT = 54  # behind a header of 40 bytes, and within a longer one
_WITH_ALPHA = 56  # bytes of the first header that states an alpha mask


def with_plain_colours(data: bytes, *, max_pixels: int) -> bytes | None:
    """The same picture over white, 24 bits a pixel."""
    if data[:2] != b"BM" or len(data) < _MASKS_AT + 16:
        return None
    (start,) = struct.unpack_from("<I", data, 10)
    size, width, signed_height, _, bits, compression = _HEADER.unpack_from(data, 14)
    height = abs(signed_height)  # negative: the first row is the top one
    if compression not in (_BITFIELDS, _ALPHA_BITFIELDS) or bits not in (16, 32):
        return None
    stride = (width * bits + 31) // 32 * 4  # rows begin at multiples of four bytes
    if not 0 < width * height <= max_pixels or start + stride * height > len(data):
        return None
    rows = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)[:, : width * bits // 8]
    values = np.ascontiguousarray(rows).view(f"<u{bits // 8}").astype(np.uint32)  # (H, W)
    if signed_height > 0:
        values = values[::-1]
    masks = struct.unpack_from("<4I", data, _MASKS_AT)
    pixels = np.dstack([_channel(values, mask) for mask in masks[:3]]).astype(np.uint32)
    has_alpha = masks[3] and (compression == _ALPHA_BITFIELDS or size >= _WITH_ALPHA)
    if has_alpha and (alpha := _channel(values, masks[3])).any():  # all of it zero: a writer that left it out
        opacity = alpha[..., None].astype(np.uint32)
        pixels = (pixels * opacity + 255 * (255 - opacity) + 127) // 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


def _channel(values: np.ndarray, mask: int) -> np.ndarray:
    """The bits of `mask` in each pixel, scaled to 0 to 255."""
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    found = ((values & mask) >> shift).astype(np.float64)
    return np.rint(found * (255 / (mask >> shift))).astype(np.uint8)
