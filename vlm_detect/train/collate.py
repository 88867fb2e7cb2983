"""A batch: every image once, and rows of questions with answers after an image's prefix.

    prepared   {name: (N, ...)}   the images' tensors, as `VLM.prepare` gives them; or, from a feature cache,
    read       what `VLM.read` gave for the images
    row_images (M,), row_order    the image of each prefix, row by row: a tensor and a list
    host_inputs                   see `VLM.host_inputs`; only where prefixes differ
    ids, image, branch, block, position_ids, labels   (B, S): see `vlm_detect.models.rows`
    predicting (N,)               the positions before the labels: see `stack_rows`, as for `packed`
    weights    (B, S)             of the labels in the loss; only with `loss_per="answer"`
    n_images, n_questions, n_tokens            of the batch; tokens after the prefixes

Without packing a row holds one question; with packing all questions of an image follow one prefix, and several images
share a row of up to `row_tokens` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage
from vlm_detect.models.base import VLM
from vlm_detect.models.rows import Answered, Row, answer_weights, fill_rows, stack_rows
from vlm_detect.records import Question
from vlm_detect.train.examples import Example
from vlm_detect.train.features import Features
from vlm_detect.train.row_shapes import RowLengths


@dataclass(frozen=True)
class Collator:
    """Turns units into a batch. The ids of a question are exactly those used at inference."""

    vlm: VLM
    pack: bool = False  # where the model supports it
    row_tokens: int | None = None  # of a packed row; None: one image per row
    features: Features | None = None
    max_length: int = 2048  # maximum of an image with one question and answer: the model's context
    loss_per: str = "token"  # what counts equally in the loss: each token, or each answer
    lengths: RowLengths = field(default_factory=RowLengths)

    def __post_init__(self) -> None:
        # Found here: worker processes have no weights to measure it on.
        object.__setattr__(self, "pack", self.pack and self.vlm.supports_packing)

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned worker processes."""
        return {**vars(self), "vlm": self.vlm.without_weights()}

    def __call__(self, units: Sequence[Sequence[Example]]) -> dict[str, Any]:
        examples = [example for unit in units for example in unit]
        form, images = self._images([example.image for example in examples])
        prefixes = (
            [self.vlm.prefix_ids()] * len(examples) if self.vlm.has_fixed_prefix else self.vlm.prefix_rows(images)
        )
        asked = [[self._answered(question) for question in example.questions] for example in examples]
        self._check_length([example.image.name for example in examples], prefixes, asked)
        blocks = [self.vlm.two_way_blocks(prefix) if self.pack else () for prefix in prefixes]
        rows: list[Row] = []
        for layout in self._layout(prefixes, asked):
            rows.append(Row())
            for image, questions in layout:
                rows[-1].add(image, prefixes[image], questions, blocks[image])
        budget = self.row_tokens if self.pack else None
        columns = stack_rows(rows, self.vlm.eos_token_id, self.lengths.multiple_for(max(map(len, rows)), budget))
        if not self.vlm.has_fixed_prefix:
            columns["host_inputs"] = self.vlm.host_inputs(images, columns)
        if self.loss_per == "answer":
            columns["weights"] = answer_weights(columns)
        return {
            form: images,
            **columns,
            "n_images": len(examples),
            "n_questions": sum(map(len, asked)),
            "n_tokens": sum(len(one) for image in asked for one in image),
        }

    def _answered(self, q: Question) -> Answered:
        return Answered(self.vlm.dialogue_ids(q.history, q.question), self.vlm.answer_ids(q.answer))

    def _layout(self, prefixes: list[list[int]], asked: list[list[Answered]]) -> list[list[tuple[int, list[Answered]]]]:
        """The content of each row: images with their questions."""
        if not self.pack:
            return [[(image, [one])] for image, questions in enumerate(asked) for one in questions]
        lengths = [len(prefix) + sum(map(len, some)) for prefix, some in zip(prefixes, asked, strict=True)]
        if self.row_tokens is None:
            return [[(image, questions)] for image, questions in enumerate(asked)]
        if max(lengths) > self.row_tokens:
            raise UserError(
                f"--pack_tokens {self.row_tokens}: an image with its questions takes {max(lengths)} tokens; raise it "
                "to that or ask fewer --questions_per_image"
            )
        return [[(image, asked[image]) for image in row] for row in fill_rows(lengths, self.row_tokens)]

    def _images(self, images: Sequence[StoredImage]) -> tuple[str, Any]:
        if self.features is not None:
            return "read", self.features.read([image.key for image in images])
        return "prepared", self.vlm.prepare([image.open() for image in images])

    def _check_length(self, names: list[str], prefixes: list[list[int]], asked: list[list[Answered]]) -> None:
        for name, prefix, questions in zip(names, prefixes, asked, strict=True):
            longest = max(map(len, questions))  # positions restart with each question
            if len(prefix) + longest > self.max_length:
                raise UserError(
                    f"{name}: a question with its answer takes {longest} tokens after an image of {len(prefix)}, and "
                    f"the model's context has {self.max_length}: remove that row, or its long answers "
                    "(--question_kinds without explain)"
                )
