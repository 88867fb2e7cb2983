"""Rows of a batch: many questions after one image prefix, several images in one row, isolated from each other.

    [ prefix A ][ question 0, answer 0 ][ question 1, answer 1 ][ prefix B ][ question 0, answer 0 ] ...

    image      (B, S)  number of the image in its row; -1 is padding
    branch     (B, S)  number of the question behind its image; PREFIX within the image prefix, PADDING after the row
    block      (B, S)  number of the block of the prefix whose tokens see each other in both directions; else CAUSAL
    positions  (B, S)  those of a row that holds one image and one question
    labels     (B, S)  the ids of the answers; else IGNORE

A question attends to its own image's prefix and itself; an image to itself. So hidden states, loss and gradients equal
those of one row per question, while a prefix is computed once and padding is reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

PREFIX, PADDING = -1, -2  # of `branch`
CAUSAL = -1  # of `block`
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
    block: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # which of the batch's images stand here, in their order

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, image: int, prefix: Sequence[int], questions: Sequence[Answered], blocks: Sequence[int] = ()) -> None:
        """Append one of the batch's images, with the questions that follow its prefix.

        `blocks`: for each token of the prefix its two-way block, or CAUSAL; by default all are that.
        """
        number = len(self.images)
        self.images.append(image)
        self._extend(number, PREFIX, 0, prefix, [IGNORE] * len(prefix))
        self.block[len(self.block) - len(prefix) :] = blocks or [CAUSAL] * len(prefix)
        for branch, one in enumerate(questions):
            labels = [IGNORE] * len(one.question) + one.answer
            self._extend(number, branch, len(prefix), one.question + one.answer, labels)

    def _extend(self, image: int, branch: int, position: int, ids: Sequence[int], labels: Sequence[int]) -> None:
        self.ids += ids
        self.image += [image] * len(ids)
        self.branch += [branch] * len(ids)
        self.block += [CAUSAL] * len(ids)
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


def stack_rows(rows: Sequence[Row], pad_id: int, multiple: int = 1) -> dict[str, Any]:
    """The columns of `rows`, right padded to the longest and to a multiple of `multiple`: each (B, S).

    Also `predicting` (see there), the images of the rows in their order, as `row_images` (M,) and as the list
    `row_order`, and `packed`: whether a row holds more than one image with one question. They are found here, on the
    host: asked of tensors on a GPU, they would wait for it.
    """
    padding: dict[str, int] = {"ids": pad_id, "image": -1, "branch": PADDING, "block": CAUSAL}
    padding |= {"position_ids": 0, "labels": IGNORE}
    length = -(-max(map(len, rows)) // multiple) * multiple
    columns: dict[str, Any] = {
        name: torch.tensor([getattr(row, name) + [value] * (length - len(row)) for row in rows])
        for name, value in padding.items()
    }
    columns["predicting"] = predicting(columns["labels"])
    columns["row_order"] = [image for row in rows for image in row.images]
    columns["row_images"] = torch.tensor(columns["row_order"])
    columns["packed"] = any(len(row.images) > 1 or max(row.branch) > 0 for row in rows)
    return columns


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """(N,): the positions, in the flattened rows, whose next token has a label (B, S)."""
    labelled = labels != IGNORE
    labelled[:, 0] = False  # nothing comes before it
    return labelled.flatten().nonzero().flatten() - 1


def answer_weights(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, S) float: weights of the labels by which each answer counts equally, whatever its length.

    0 where there is no label; their sum is the number of labels.
    """
    labelled = rows["labels"] != IGNORE
    row = torch.arange(len(labelled))[:, None].expand_as(labelled)
    answer_of_label = torch.stack([row[labelled], rows["image"][labelled], rows["branch"][labelled]])
    answers, answer, n_labels = answer_of_label.unique(dim=1, return_inverse=True, return_counts=True)
    mean_length = labelled.sum() / answers.shape[1]
    return torch.zeros(labelled.shape).masked_scatter(labelled, mean_length / n_labels[answer])


def may_look(rows: Mapping[str, torch.Tensor], window: int | None = None) -> torch.Tensor:
    """(B, S, S) bool: whether a query (row) attends to a key (column); `window`: at most this many positions back.

    Padding attends to itself, because a softmax over nothing is undefined.
    """
    batch, length = rows["image"].shape
    index = torch.arange(length, device=rows["image"].device)
    batches = torch.arange(batch, device=index.device)[:, None, None]
    return _rule(rows, window)(batches, None, index[None, :, None], index[None, None, :])


def attention_mask(
    rows: Mapping[str, torch.Tensor], dtype: torch.dtype, *, flex: bool = False, window: int | None = None
) -> torch.Tensor | BlockMask:
    """The mask of packed rows for the model's forward: additive (B, 1, S, S), or FlexAttention's blocks of it.

    Fully masked blocks are skipped: a row's cost grows linearly with its images, not quadratically.
    """
    if flex:
        batch, length = rows["image"].shape
        device = rows["image"].device
        return create_block_mask(_rule(rows, window), B=batch, H=None, Q_LEN=length, KV_LEN=length, device=device)
    allowed = may_look(rows, window)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _rule(rows: Mapping[str, torch.Tensor], window: int | None) -> Callable[..., torch.Tensor]:
    """Of row b, whether the token at index `query` sees that at `key`: numbers, or tensors of them that broadcast."""
    image, branch, block, position = (rows[name] for name in ("image", "branch", "block", "position_ids"))

    def sees(b: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        own_branch = (branch[b, query] == branch[b, key]) | (branch[b, key] == PREFIX)
        two_way = (block[b, query] == block[b, key]) & (block[b, query] != CAUSAL)
        seen = (image[b, query] == image[b, key]) & (((query >= key) & own_branch) | two_way)
        return seen if window is None else seen & (position[b, key] > position[b, query] - window)

    return sees
