"""Helpers with which the kinds of question build the blocks of a benchmark."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm_detect.questions.kind import Block
from vlm_detect.records import Item, Pair, Source

ABOUT_EDITS = {"asked": "edited"}  # the metadata of an item that asks about edits
_EDITS_TO_OTHERS = 0.25


def item_about(
    source: Source,
    kind: str,
    question: str,
    ground_truth: str,
    *,
    options: tuple[str, ...] = (),
    operation: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Item:
    """An item about one image, after `operation`; `metadata` is added to the known facts about the image."""
    facts = source.facts | dict(metadata or {})
    return Item("", kind, (source.changed(operation),), question, ground_truth, options, facts)


def with_edits(blocks: Iterator[Block], edit_blocks: Iterator[Block], rng: random.Random) -> Iterator[Block]:
    """One block about edits for about four other blocks, while there are both."""
    for block in blocks:
        if rng.random() < _EDITS_TO_OTHERS and (edit_block := next(edit_blocks, None)):
            yield edit_block
        yield block
    yield from edit_blocks


def endless(pairs: Sequence[Pair], rng: random.Random) -> Iterator[Pair]:
    """Every pair once in a sampled order, then again in another."""
    while True:
        yield from rng.sample(list(pairs), len(pairs))
