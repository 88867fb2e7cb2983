"""Augmentations that change no traces: pixels are moved, none is computed anew. Both members of a unit share a draw.

If a photo and its twin were augmented differently, the augmentation would tell them apart (AlignedForensics).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.train.images import StoredImage

Transpose = Image.Transpose
AUGMENTATIONS = ("flip", "rotate")  # left-right mirroring; quarter turns
_TURNS = (None, Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)


@dataclass(frozen=True)
class AugmentedImage(StoredImage):
    """A stored image that opens with its pixels moved."""

    moves: tuple[Transpose, ...] = ()

    def open(self) -> Image.Image:
        image = super().open()
        for move in self.moves:
            image = image.transpose(move)
        return image


def check_augmentations(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise UserError(f"--augment {' '.join(unknown)}: unknown; choose from {', '.join(AUGMENTATIONS)}")


def draw_moves(names: Sequence[str], rng: random.Random) -> tuple[Transpose, ...]:
    """The moves of one unit. Everything is drawn whatever is used, so that one choice does not shift another."""
    mirror, turn = rng.random() < 0.5, rng.choice(_TURNS)
    moves = [Transpose.FLIP_LEFT_RIGHT] if mirror and "flip" in names else []
    if turn is not None and "rotate" in names:
        moves.append(turn)
    return tuple(moves)
