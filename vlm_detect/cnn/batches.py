"""From indices to a batch: gather and augment pixels in one step, on their device.

    batches = Batches(shots, targets, augment=("flip",), seed=0)
    pixels, targets = batches.batch(index, epoch)       # (B, 3, S, S) uint8 in channels-last order, {head: (B,)}

Augmentations move pixels or hide them, without resampling, so generator artifacts survive. Random choices depend only
on (seed, epoch, group), so a photo and its twins are augmented alike, and resuming changes nothing. `reference_batch`
does the same image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vlm_detect.cnn.pixels import Shots
from vlm_detect.errors import UserError

# mirroring; quarter turns; up to `SHIFT` pixels, borders reflected; a grey square (Cutout, DeVries and Taylor 2017)
AUGMENTATIONS = ("flip", "rotate", "shift", "erase")
SHIFT = 4
ERASED = 2  # the grey square's side is the image's by this; centred on any pixel, so a part of it may lie outside
GREY = 128


@dataclass(frozen=True)
class Moves:
    """What is done to each image of a batch, (B,) each, in this order."""

    mirrored: Tensor  # bool
    turns: Tensor  # quarter turns to the left
    down: Tensor  # pixels
    right: Tensor  # pixels
    erased: Tensor  # (B, 2) row and column of the grey square's centre in the augmented image; -1: no square

    def to(self, device: torch.device) -> Moves:
        return Moves(*(getattr(self, field.name).to(device) for field in fields(self)))


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
        self._sampled: tuple[int, Tensor, Tensor] | None = None

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
            moves = sampled.to(device)
            row, column = _origins(self.images.shape[1], moves)
            pixels = self.images[index[:, None, None], row, column]
            if "erase" in self.augment:
                pixels[_erased(self.images.shape[1], moves.erased)] = GREY
        else:
            pixels = self.images[index]
        return pixels.permute(0, 3, 1, 2), {head: target[index] for head, target in self.targets.items()}

    def moves(self, index: Tensor, epoch: int) -> Moves:
        """The random choices of an epoch for the images of a batch; `index` (B,)."""
        if self._sampled is None or self._sampled[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            moved = torch.rand(self.n_groups, 4, generator=generator)
            self._sampled = epoch, moved, torch.rand(self.n_groups, 2, generator=generator)
        _, moved, erased = self._sampled
        groups = self.groups[index]
        draws = moved[groups]
        shift = SHIFT if "shift" in self.augment else 0
        down, right = ((draws[:, i] * (2 * shift + 1)).long() - shift for i in (2, 3))
        turns = (draws[:, 1] * 4).long() if "rotate" in self.augment else torch.zeros_like(down)
        centres = (erased[groups] * self.images.shape[1]).long()
        centres = centres if "erase" in self.augment else torch.full_like(centres, -1)
        return Moves((draws[:, 0] < 0.5) & ("flip" in self.augment), turns, down, right, centres)


def _origins(side: int, moves: Moves) -> tuple[Tensor, Tensor]:
    """The source (row, column) in the stored image of every pixel of a moved one, (B, S, S) each.

    An image is rotated, then shifted, then mirrored; indices are traced back in reverse order.
    """
    last = side - 1
    along = torch.arange(side, device=moves.turns.device)
    y, x = along[None, :, None], along[None, None, :]
    x = torch.where(moves.mirrored[:, None, None], last - x, x) + moves.right[:, None, None]
    y = y + moves.down[:, None, None]
    y, x = (last - (last - at.abs()).abs() for at in (y, x))  # reflected at the borders
    turn = moves.turns[:, None, None]
    row = torch.where(turn == 0, y, torch.where(turn == 1, x, torch.where(turn == 2, last - y, last - x)))
    column = torch.where(turn == 0, x, torch.where(turn == 1, last - y, torch.where(turn == 2, last - x, y)))
    return row, column


def _erased(side: int, centres: Tensor) -> Tensor:
    """Where the grey squares around `centres` (B, 2) lie, (B, S, S) of bool."""
    half = side // ERASED // 2
    along = torch.arange(side, device=centres.device)
    covered = (along[None, None] >= centres[..., None] - half) & (along[None, None] < centres[..., None] + half)
    return covered[:, 0, :, None] & covered[:, 1, None, :]


def reference_batch(batches: Batches, index: Tensor, epoch: int) -> Tensor:
    """The reference implementation of `Batches.batch`: image by image, with numpy."""
    pixels = []
    moves = batches.moves(index, epoch)
    for place, image in enumerate(batches.images[index].numpy()):
        side = len(image)
        turned = np.rot90(image, int(moves.turns[place]))
        wide = np.pad(turned, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
        top, left = SHIFT + int(moves.down[place]), SHIFT + int(moves.right[place])
        moved = wide[top : top + side, left : left + side]
        moved = np.fliplr(moved).copy() if moves.mirrored[place] else moved.copy()
        if "erase" in batches.augment:
            half = side // ERASED // 2
            row, column = moves.erased[place].tolist()
            moved[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = GREY
        pixels.append(moved)
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
