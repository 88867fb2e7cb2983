"""The ninths of an image and their names: the place of a box, and the places that a text names."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Row by row.
PLACES = ("upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right")

_MIDDLE = r"(?:[ -](?:cent(?:re|er)|middle))?(?![ -](?:left|right|cent|middle))"
_PART = r"(?=[ -](?:part|half|third|edge|area|region|section|cent|middle))"  # "lower" alone is a comparison
_ALONE = r"(?<!upper[ -])(?<!top[ -])(?<!lower[ -])(?<!bottom[ -])"
# Wordings of each. "The top" is not "the top left", and "the left" is not "the upper left".
PLACE_PATTERNS = {
    "upper left": r"(?:upper|top)[ -]left",
    "upper right": r"(?:upper|top)[ -]right",
    "lower left": r"(?:lower|bottom)[ -]left",
    "lower right": r"(?:lower|bottom)[ -]right",
    "top": rf"(?:upper{_PART}|top){_MIDDLE}",
    "bottom": rf"(?:lower{_PART}|bottom){_MIDDLE}",
    "left": rf"{_ALONE}left",
    "right": rf"{_ALONE}right",
    "centre": rf"{_ALONE}(?:cent(?:re|er)|middle)",
}
_NAMED = {place: re.compile(rf"\b(?:{pattern})\b") for place, pattern in PLACE_PATTERNS.items()}


def place_of(box: Sequence[int], size: tuple[int, int]) -> str:
    """The word for the ninth of an image of `size`, as `box_of` has it, in which the middle of `box` lies."""
    column, row = (sum(2 * (n * size[i] // 3) <= box[i] + box[i + 2] for n in (1, 2)) for i in (0, 1))
    return PLACES[3 * row + column]


def box_of(place: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The ninth of an image of `size` (width, height) with this name: x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    row, column = divmod(PLACES.index(place), 3)
    (width, height) = size
    return column * width // 3, row * height // 3, (column + 1) * width // 3, (row + 1) * height // 3


def places_in(text: str) -> list[str]:
    """The places that a text names, each once, in the order of `PLACES`."""
    lowered = text.lower()
    return [place for place in PLACES if _NAMED[place].search(lowered)]
