"""Rows of a batch: many questions behind one image prefix, several images in one row, each blind to the others.

    [ prefix A ][ question 0, answer 0 ][ question 1, answer 1 ][ prefix B ][ question 0, answer 0 ] ...

    image      (B, S)  number of the image in its row; -1 is padding
    branch     (B, S)  number of the question behind its image; PREFIX within the image prefix, PADDING behind the row
    positions  (B, S)  those of a row that holds one image and one question

A question sees its own image's prefix and itself; an image sees itself. So hidden states, loss and gradients are those
of one row a question, while a prefix is computed once and short rows share their padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

PREFIX, PADDING = -1, -2
IGNORE = -100  # positions without a label, as in torch's cross entropy


@dataclass(frozen=True)
class Answered:
    """The ids of one question and of its answer."""

    question: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


@dataclass
class Row:
    """A growing row: the columns of one batch row, as lists."""

    ids: list[int] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # which of the batch's images stand here, in their order

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, image: int, prefix: Sequence[int], questions: Sequence[Answered]) -> None:
        """Append one of the batch's images, with the questions that follow its prefix."""
        number = len(self.images)
        self.images.append(image)
        self._extend(number, PREFIX, 0, prefix, [IGNORE] * len(prefix))
        for branch, one in enumerate(questions):
            labels = [IGNORE] * len(one.question) + one.answer
            self._extend(number, branch, len(prefix), one.question + one.answer, labels)

    def _extend(self, image: int, branch: int, position: int, ids: Sequence[int], labels: Sequence[int]) -> None:
        self.ids += ids
        self.image += [image] * len(ids)
        self.branch += [branch] * len(ids)
        self.position_ids += range(position, position + len(ids))
        self.labels += labels


def fill_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which items go into which row, so that no row is longer than `budget`: longest first, into the first that fits.

    An item longer than the budget has a row of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, left in enumerate(room) if lengths[item] <= left), None)
        if place is None:
            rows.append([])
            room.append(budget)
            place = len(rows) - 1
        rows[place].append(item)
        room[place] -= lengths[item]
    return [sorted(row) for row in rows]


def stack_rows(rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """The columns of `rows`, right padded to the longest: each (B, S)."""
    padding: dict[str, int] = {"ids": pad_id, "image": -1, "branch": PADDING, "position_ids": 0, "labels": IGNORE}
    longest = max(map(len, rows))
    return {
        name: torch.tensor([getattr(row, name) + [value] * (longest - len(row)) for row in rows])
        for name, value in padding.items()
    }


def may_look(image: torch.Tensor, branch: torch.Tensor, two_way_prefix: bool) -> torch.Tensor:
    """(B, S, S) of bool: whether a query (row) sees a key (column).

    `two_way_prefix`: the positions of a prefix see each other in both directions (moondream), else only backwards.
    Padding sees itself, for a query that sees nothing has no softmax.
    """
    index = torch.arange(image.shape[1], device=image.device)
    return _rule(
        image[:, :, None],
        image[:, None, :],
        branch[:, :, None],
        branch[:, None, :],
        index[:, None] >= index[None, :],
        two_way_prefix,
    )


def attention_mask(
    image: torch.Tensor, branch: torch.Tensor, two_way_prefix: bool, dtype: torch.dtype, *, flex: bool = False
) -> torch.Tensor | BlockMask:
    """The mask of packed rows for the model's forward: additive (B, 1, S, S), or FlexAttention's blocks of it."""
    if flex:
        return _block_mask(image, branch, two_way_prefix)
    allowed = may_look(image, branch, two_way_prefix)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=image.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _block_mask(image: torch.Tensor, branch: torch.Tensor, two_way_prefix: bool) -> BlockMask:
    """Blocks in which nothing may be seen are skipped: a row's cost grows with its images, not with their square."""

    def rule(b: Any, head: Any, query: Any, key: Any) -> Any:
        return _rule(image[b, query], image[b, key], branch[b, query], branch[b, key], query >= key, two_way_prefix)

    batch, length = image.shape
    return create_block_mask(rule, B=batch, H=None, Q_LEN=length, KV_LEN=length, device=image.device)


def _rule(
    query_image: torch.Tensor,
    key_image: torch.Tensor,
    query_branch: torch.Tensor,
    key_branch: torch.Tensor,
    backwards: torch.Tensor,
    two_way_prefix: bool,
) -> torch.Tensor:
    same_image, to_prefix = query_image == key_image, key_branch == PREFIX
    seen = backwards & ((query_branch == key_branch) | to_prefix)
    if two_way_prefix:
        seen = seen | (to_prefix & (query_branch == PREFIX))
    return same_image & seen
