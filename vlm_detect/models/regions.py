"""Points and boxes in parts of an image's width and height: what models find, and what they are asked about."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """From the left and from the top, in [0, 1]."""

    x: float
    y: float


class Box(NamedTuple):
    """Its corners, from the left and from the top. A model's box may reach beyond the image, that is beyond [0, 1]."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The box of this size with its middle at (x, y)."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def pixels(self, width: int, height: int, margin: float = 0.0) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in an image of that size, within its border and at least a pixel wide and high.

        `margin` adds a part of the box's own width and height on every side.
        """
        aside, above = margin * (self.x_max - self.x_min), margin * (self.y_max - self.y_min)
        left, right = _span(self.x_min - aside, self.x_max + aside, width)
        top, bottom = _span(self.y_min - above, self.y_max + above, height)
        return left, top, right, bottom


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    first = min(max(round(low * side), 0), side - 1)
    return first, min(max(round(high * side), first + 1), side)
