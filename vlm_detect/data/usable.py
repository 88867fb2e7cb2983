"""What a decoded picture must have to be of use: size enough, and something to see."""

from __future__ import annotations

from vlm_detect.data.decode import DecodedImage, ImageRejected
from vlm_detect.data.encode import is_blank


def check_usable(decoded: DecodedImage, min_side: int) -> None:
    """`ImageRejected` for a picture with a side below `min_side` pixels, or of one colour all over."""
    if min(decoded.width, decoded.height) < min_side:
        raise ImageRejected("too_small", f"{decoded.width}x{decoded.height} pixels, a side below {min_side}")
    if is_blank(decoded.image):
        raise ImageRejected("blank", "one colour all over")
