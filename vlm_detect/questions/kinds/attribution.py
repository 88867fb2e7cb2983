"""What made an image: a camera, or which generator."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from vlm_detect.questions.ask import CAMERA, LETTERS
from vlm_detect.questions.blocks import endless, item_about
from vlm_detect.questions.kind import Block, QuestionKind, question
from vlm_detect.questions.prompts import Prompt
from vlm_detect.records import Item, Pair, Polarity, Question, Subject, Topic, is_real_name

ATTRIBUTION_QUESTION = "What made this image?"
_MOST = 4  # options per question, including the camera


@question("attribution")
class Attribution(QuestionKind):
    in_benchmark = True
    default_size = 200
    chooses = True
    states_verdicts = True
    names_makers = True

    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question | None:
        if topic == "edit":
            return None
        if subject.label == "real":
            return Question(self.name, ATTRIBUTION_QUESTION, CAMERA)
        return Question(self.name, ATTRIBUTION_QUESTION, f"{subject.generator}.") if subject.generator else None

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """Two to four makers, the camera among them, and an image by each."""
        by_generator: dict[str, list[Pair]] = defaultdict(list)
        for pair in made:
            if pair[1].generator:
                by_generator[pair[1].generator].append(pair)
        draws = {name: endless(pairs, rng) for name, pairs in sorted(by_generator.items())}
        # As many blocks as the rarest maker has images: no image is used twice.
        for _ in range(min(map(len, by_generator.values()), default=0)):
            names = rng.sample(sorted(draws), min(len(draws), _MOST - 1))
            pairs = {name: next(draws[name]) for name in names}
            shown = [(CAMERA, pairs[names[0]][0]), *((f"{name}.", pair[1]) for name, pair in pairs.items())]
            rng.shuffle(shown)
            options = tuple(option for option, _ in shown)
            yield [
                item_about(source, self.name, ATTRIBUTION_QUESTION, LETTERS[i], options=options)
                for i, (_, source) in enumerate(shown)
            ]

    def prompts(self, item: Item, makers: Sequence[str] = ()) -> list[Prompt]:
        """An item without options chooses among all makers of the benchmark."""
        if item.options:
            return super().prompts(item)
        names = tuple(sorted({*makers, item.ground_truth}))
        fake = tuple(self.says_fake(name) for name in names)
        return [Prompt(item, "", 0, item.question, names, names, names.index(item.ground_truth), fake)]

    def says_fake(self, answer: str) -> bool:
        return not is_real_name(answer)
