"""A photo and its twin side by side: which of them is AI-generated? For the benchmark."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from vlm_detect.questions.ask import LETTERS
from vlm_detect.questions.kind import Block, QuestionKind, question
from vlm_detect.records import Item, Pair

WHICH_QUESTION = "Two images stand side by side. Which of them is AI-generated?"
SIDES = ("The one on the left.", "The one on the right.")


@question("which_of_two")
class WhichOfTwo(QuestionKind):
    in_benchmark = True
    default_size = 200
    n_images = 2
    chooses = True

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """A photo and its twin, in both orders."""
        for photo, twin in rng.sample(list(made), len(made)):
            yield [
                Item(
                    "",
                    self.name,
                    tuple(source.ref for source in order),
                    WHICH_QUESTION,
                    LETTERS[order.index(twin)],
                    SIDES,
                    twin.facts,
                )
                for order in ((photo, twin), (twin, photo))
            ]

    def is_fake(self, item: Item) -> None:
        """None: one of the two images is."""
        return None
