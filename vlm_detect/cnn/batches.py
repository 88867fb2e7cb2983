"""From indices to a batch: gather and augment pixels in one step, on their device.

    batches = Batches(shots, targets, augment=("flip",), seed=0)
    pixels, targets = batches.batch(index, epoch)       # (B, 3, S, S) uint8 in channels-last order, {head: (B,)}

Augmentations only move pixels, without resampling, so generator artifacts survive. Random choices depend only on (seed,
epoch, group), so a photo and its twins are augmented alike, and resuming changes nothing. `reference_batch` does the
same image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vlm_detect.cnn.pixels import Shots
from vlm_detect.errors import UserError

AUGMENTATIONS = ("flip", "rotate", "shift")  # mirroring; quarter turns; up to `SHIFT` pixels, borders reflected
SHIFT = 4


class Batches(Dataset[dict[str, Tensor]]):
    """A training set for a DataLoader that requests complete batches of (epoch, index) and gets tensors."""

    def __init__(
        self,
        shots: Shots,
        targets: Mapping[str, np.ndarray],
        *,
        augment: Sequence[str] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if unknown := [name for name in augment if name not in AUGMENTATIONS]:
            raise UserError(f"--augment {' '.join(unknown)}: unknown; choose from {', '.join(AUGMENTATIONS)}")
        self.augment, self.seed = tuple(augment), seed
        self.images = torch.from_numpy(shots.images).to(device)
        self.targets = {head: torch.from_numpy(values).to(device) for head, values in targets.items()}
        names, groups = np.unique(shots.column("group"), return_inverse=True)
        self.n_groups, self.groups = len(names), torch.from_numpy(groups)
        self._sampled: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The DataLoader's output: the indices of the batch's images. `batch` reads them, on their device."""
        return {"epoch": torch.tensor(places[0][0]), "index": torch.tensor([index for _, index in places])}

    def batch(self, index: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.images.device
        sampled = self.moves(index.cpu(), epoch)
        index = index.to(device)
        if self.augment:
            row, column = _origins(self.images.shape[1], *(draw.to(device) for draw in sampled))
            pixels = self.images[index[:, None, None], row, column]
        else:
            pixels = self.images[index]
        return pixels.permute(0, 3, 1, 2), {head: target[index] for head, target in self.targets.items()}

    def moves(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(mirrored, quarter turns to the left, pixels down, pixels to the right) of each image (B,)."""
        if self._sampled is None or self._sampled[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._sampled = epoch, torch.rand(self.n_groups, 4, generator=generator)
        draws = self._sampled[1][self.groups[index]]
        shift = SHIFT if "shift" in self.augment else 0
        down, right = ((draws[:, i] * (2 * shift + 1)).long() - shift for i in (2, 3))
        turns = (draws[:, 1] * 4).long() if "rotate" in self.augment else torch.zeros_like(down)
        return (draws[:, 0] < 0.5) & ("flip" in self.augment), turns, down, right


def _origins(side: int, mirror: Tensor, turns: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The source (row, column) in the stored image of every pixel of a moved one, (B, S, S) each.

    An image is rotated, then shifted, then mirrored; indices are traced back in reverse order.
    """
    last = side - 1
    along = torch.arange(side, device=mirror.device)
    y, x = along[None, :, None], along[None, None, :]
    x = torch.where(mirror[:, None, None], last - x, x) + right[:, None, None]
    y = y + down[:, None, None]
    y, x = (last - (last - at.abs()).abs() for at in (y, x))  # reflected at the borders
    turn = turns[:, None, None]
    row = torch.where(turn == 0, y, torch.where(turn == 1, x, torch.where(turn == 2, last - y, last - x)))
    column = torch.where(turn == 0, x, torch.where(turn == 1, last - y, torch.where(turn == 2, last - x, y)))
    return row, column


def reference_batch(batches: Batches, index: Tensor, epoch: int) -> Tensor:
    """The reference implementation of `Batches.batch`: image by image, with numpy."""
    pixels = []
    for image, mirrored, turns, down, right in zip(
        batches.images[index].numpy(), *(draw.tolist() for draw in batches.moves(index, epoch)), strict=True
    ):
        side = len(image)
        turned = np.rot90(image, turns)
        wide = np.pad(turned, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
        top = SHIFT + down
        cut = wide[top : top + side, SHIFT + right : SHIFT + right + side]
        pixels.append(np.fliplr(cut) if mirrored else cut)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


class GroupSampler(Sampler[tuple[int, int]]):
    """(epoch, index) of every image in an order determined by (seed, epoch); a group's images are adjacent."""

    def __init__(self, groups: Tensor, seed: int) -> None:
        self.groups, self.seed, self.epoch = groups, seed, 0

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        place = torch.randperm(int(self.groups.max()) + 1, generator=generator)
        order = torch.argsort(place[self.groups], stable=True)
        return iter([(self.epoch, index) for index in order.tolist()])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
