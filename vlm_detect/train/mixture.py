"""Mix several datasets in one epoch, with weights.

    mixture = Mixture([units_a, units_b], weights=[2, 1])      # two thirds of an epoch's units from a, one from b

An epoch has as many units as the datasets together. A dataset that contributes fewer units than it has continues in the
next epoch where it stopped; one that contributes more starts over, with other random choices. Without weights every
unit occurs once per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset as TorchDataset

from vlm_detect.images.stored import StoredImage
from vlm_detect.train.examples import Example, Units


class Mixture(TorchDataset[list[Example]]):
    """Item (epoch, index) is a unit of one of `parts`, as in `Units`."""

    def __init__(self, parts: Sequence[Units], weights: Sequence[float] = ()) -> None:
        sizes = [len(part) for part in parts]
        self.parts, self.quotas = list(parts), sizes
        if weights:
            self.quotas = [max(1, round(sum(sizes) * weight / sum(weights))) for weight in weights]

    def __len__(self) -> int:
        return sum(self.quotas)

    def __getitem__(self, key: tuple[int, int]) -> list[Example]:
        epoch, index = key
        for part, quota in zip(self.parts, self.quotas, strict=True):
            if index < quota:
                passes, place = divmod(epoch * quota + index, len(part))
                return part[passes, place]
            index -= quota
        raise IndexError(key)

    @property
    def images(self) -> Joined:
        """Every image that an epoch may sample."""
        return Joined([part.images for part in self.parts])


@dataclass(frozen=True)
class Joined(Sequence[StoredImage]):
    """The concatenation of sequences of images."""

    parts: Sequence[Sequence[StoredImage]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
