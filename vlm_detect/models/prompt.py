"""A prompt in which some tokens stand for numbers: a place in the image, or a width and a height."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch


class Prompt(list[int]):
    """The ids of a prompt, and what is encoded in place of some of them.

    `numbers` maps an index to (coordinate,) or to (width, height), in parts of the image's sides.
    """

    def __init__(self, ids: Iterable[int], numbers: Mapping[int, tuple[float, ...]] | None = None) -> None:
        super().__init__(ids)
        self.numbers = dict(numbers or {})


def numbers_of(prompt: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """The numbers of a prompt, which plain ids do not have."""
    return prompt.numbers if isinstance(prompt, Prompt) else {}


def stack_numbers(rows: Sequence[Mapping[int, tuple[float, ...]]], length: int) -> dict[str, torch.Tensor]:
    """The numbers of a batch as arguments of a model's forward, NaN where there is none; nothing where no row has any.

    Each row maps an index to its numbers. Gives `coordinates` (B, length) and `sizes` (B, length, 2).
    """
    if not any(rows):
        return {}
    coordinates = torch.full((len(rows), length), math.nan)
    sizes = torch.full((len(rows), length, 2), math.nan)
    for i, row in enumerate(rows):
        for index, numbers in row.items():
            if len(numbers) == 1:
                coordinates[i, index] = numbers[0]
            else:
                sizes[i, index] = torch.tensor(numbers)
    return {"coordinates": coordinates, "sizes": sizes}
