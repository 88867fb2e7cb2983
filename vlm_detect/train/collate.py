"""A batch: every image once, and rows of questions with their answers that follow an image's prefix.

    prepared   {name: (N, ...)}   the images' tensors, as `VLM.prepare` gives them; or, from a feature cache,
    embeds     (N, T, D)          the images' embeddings
    row_image  (B,)               which image each row follows
    ids        (B, L)             [question, answer, end of text] after the prefix, right padded
    branch     (B, L)             number of the question within its row; -1 is padding
    labels     (B, L)             the answers' ids at their own positions, -100 elsewhere

Without packing a row holds one question; with packing all questions of an image ride behind one prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_detect.errors import UserError
from vlm_detect.models.base import VLM
from vlm_detect.train.examples import Example
from vlm_detect.train.features import Features
from vlm_detect.train.images import StoredImage

IGNORE = -100  # positions without a label, as in torch's cross entropy


@dataclass(frozen=True)
class Collator:
    """Turns units into a batch. The ids of a question are exactly those that inference decodes from."""

    vlm: VLM
    pack: bool = False
    features: Features | None = None
    max_length: int = 2048  # of an image with one question and answer: the model's context

    def __call__(self, units: Sequence[Sequence[Example]]) -> dict[str, Any]:
        examples = [example for unit in units for example in unit]
        row_image: list[int] = []
        rows: list[list[Answered]] = []
        for i, example in enumerate(examples):
            answered = [
                Answered(self.vlm.question_ids(q.question), self.vlm.answer_ids(q.answer)) for q in example.questions
            ]
            image_rows = [answered] if self.pack else [[one] for one in answered]
            rows += image_rows
            row_image += [i] * len(image_rows)
        self._check_length(rows)
        images = [example.image for example in examples]
        return {
            **self._images(images),
            "n_images": len(images),
            "row_image": torch.tensor(row_image),
            **collate_rows(rows, self.vlm.eos_token_id),
        }

    def _images(self, images: Sequence[StoredImage]) -> dict[str, Any]:
        if self.features is not None:
            return {"embeds": self.features.embeddings([image.key for image in images])}
        return {"prepared": self.vlm.prepare([image.open() for image in images])}

    def _check_length(self, rows: list[list[Answered]]) -> None:
        prefix = len(self.vlm.prefix_ids())
        longest = prefix + max(len(one) for row in rows for one in row)  # positions restart with each question
        if longest > self.max_length:
            raise UserError(
                f"a question with its answer takes {longest - prefix} tokens behind an image of {prefix}; the model's "
                f"context holds {self.max_length}: leave out long answers (--question_kinds without explain)"
            )


@dataclass(frozen=True)
class Answered:
    """The ids of one question and of its answer."""

    question: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


def collate_rows(rows: Sequence[Sequence[Answered]], pad_id: int) -> dict[str, torch.Tensor]:
    """`ids`, `branch` and `labels`, each (B, L), L being the longest row's length."""
    length = max(sum(map(len, row)) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    branch, labels = torch.full_like(ids, -1), torch.full_like(ids, IGNORE)
    for b, row in enumerate(rows):
        start = 0
        for number, one in enumerate(row):
            end, answer_start = start + len(one), start + len(one.question)
            ids[b, start:end] = torch.tensor(one.question + one.answer)
            labels[b, answer_start:end] = torch.tensor(one.answer)
            branch[b, start:end] = number
            start = end
    return {"ids": ids, "branch": branch, "labels": labels}
