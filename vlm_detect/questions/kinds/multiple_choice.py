"""Four options, two of each verdict, so that a verdict alone does not give the letter.

In training an option is a verdict with a caption: verdict and content have to be right. Options of one question use
the same phrases, and the false caption is the one closest in length to the true one, so that the text reveals nothing.

In a benchmark an option is a verdict with a reason, which is what was actually done. For a generated image that is its
kind or its generator, if the dataset has more than one; otherwise, and for every photo, a harmless operation that is
applied to it (a crop, a rescaling, a JPEG compression). Generated images get such an operation too, so that it is
independent of the class. Edited images are asked about with the operation and the place of their planted edit.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from vlm_detect.images.edits import EDITS
from vlm_detect.places import PLACES
from vlm_detect.questions.ask import LETTERS, lettered
from vlm_detect.questions.blocks import ABOUT_EDITS, endless, item_about, with_edits
from vlm_detect.questions.kind import Block, QuestionKind, question
from vlm_detect.questions.read import first_verdict
from vlm_detect.records import Pair, Polarity, Question, Source, Subject, Topic

CONTENT_QUESTION = "Is this image real or AI-generated, and what does it show?"
REASON_QUESTION = "Is this image real or AI-generated, and what was done to it?"
EDIT_CHOICE_QUESTION = "A part of this image was altered. What was done, and where?"
OPERATIONS = {"crop": "it was cropped", "rescale": "it was scaled down", "jpeg": "it was compressed"}
KIND_WORDS = {"caption": "it was drawn from a text", "vae": "it was painted after a photo"}


@question("multiple_choice")
class MultipleChoice(QuestionKind):
    varies = True
    in_benchmark = True
    default_size = 1000
    chooses = True
    states_verdicts = True
    gives_reasons = True

    def ask(
        self, subject: Subject, polarity: Polarity, rng: random.Random, *, topic: Topic, other_captions: Sequence[str]
    ) -> Question | None:
        options = _edit_options(subject, rng) if topic == "edit" else _content_options(subject, rng, other_captions)
        if not options:
            return None
        rng.shuffle(options)
        letter = LETTERS[[right for _, right in options].index(True)]
        text = EDIT_CHOICE_QUESTION if topic == "edit" else CONTENT_QUESTION
        return Question(self.name, lettered(text, [option for option, _ in options]), letter)

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """Four options for four images: two photos with an operation each, two generated images with a reason each."""
        return with_edits(self._reasons(made, rng), self._edits(edits, rng), rng)

    def says_fake(self, answer: str) -> bool | None:
        return first_verdict(answer)

    def _reasons(self, made: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        draws = {reason: endless(pairs, rng) for reason, pairs in sorted(_by_reason(made).items())}
        seen: set[tuple[str, ...]] = set()
        # Enough samples to find the different blocks.
        for _ in range(50 * len(made) + 50 if draws else 0):
            first, second = rng.sample(sorted(draws), 2) if len(draws) > 1 else [next(iter(draws))] * 2
            block = self._block(next(draws[first]), next(draws[second]), (first, second), rng)
            key = tuple(sorted(f"{item.images[0]} {item.question}{item.options}" for item in block))
            if key not in seen:
                seen.add(key)
                yield block

    def _block(self, one: Pair, two: Pair, words: tuple[str, str], rng: random.Random) -> Block:
        a, b = rng.sample(sorted(OPERATIONS), 2)
        by_operation = words[0] == words[1]
        reasons = (OPERATIONS[a], OPERATIONS[b]) if by_operation else words
        # Other reasons do not determine an operation: the generated images get theirs at random.
        done = (a, b) if by_operation else (rng.choice((a, b)), rng.choice((a, b)))
        shown = [
            (f"It is a real photo, and {OPERATIONS[a]}.", one[0], a),
            (f"It is a real photo, and {OPERATIONS[b]}.", two[0], b),
            (f"It is AI-generated, and {reasons[0]}.", one[1], done[0]),
            (f"It is AI-generated, and {reasons[1]}.", two[1], done[1]),
        ]
        rng.shuffle(shown)
        options = tuple(option for option, _, _ in shown)
        return [
            item_about(
                source,
                self.name,
                REASON_QUESTION,
                LETTERS[place],
                operation=operation,
                options=options,
                metadata={"operation": operation, "reason": option.partition(", and ")[2].rstrip(".")},
            )
            for place, (option, source, operation) in enumerate(shown)
        ]

    def _edits(self, edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """Four edits: two operations at two places if the dataset has them, else any four that differ."""
        waiting: dict[tuple[str, str], list[Source]] = defaultdict(list)
        known = [(twin, words) for _, twin in edits if (words := twin.edit_words)]
        for twin, words in rng.sample(known, len(known)):
            waiting[words["operation"], words["place"]].append(twin)
        while len(waiting) >= 4:
            chosen = rng.choice(_grids(waiting) or [rng.sample(sorted(waiting), 4)])
            order = rng.sample(chosen, 4)
            sources = [waiting[edit].pop() for edit in order]
            waiting = defaultdict(list, {edit: left for edit, left in waiting.items() if left})
            options = tuple(f"{_capital(operation)} at the {place}." for operation, place in order)
            yield [
                item_about(source, self.name, EDIT_CHOICE_QUESTION, letter, options=options, metadata=ABOUT_EDITS)
                for letter, source in zip(LETTERS, sources, strict=False)
            ]


def _content_options(subject: Subject, rng: random.Random, other_captions: Sequence[str]) -> list[tuple[str, bool]]:
    """Both verdicts with the true and with a false caption."""
    others = [caption for caption in other_captions if caption and caption != subject.caption]
    if not subject.caption or not others:
        return []
    sample = rng.sample(others, min(8, len(others)))
    false_caption = min(sample, key=lambda caption: abs(len(caption) - len(subject.caption)))
    verdicts = {"real": "It is a real photo", "generated": "It is AI-generated"}
    return [
        (f"{words}: {caption.rstrip('.')}.", label == subject.label and caption == subject.caption)
        for label, words in verdicts.items()
        for caption in (subject.caption, false_caption)
    ]


def _edit_options(subject: Subject, rng: random.Random) -> list[tuple[str, bool]]:
    """Two operations at two places, one pair of them true."""
    operation, place = subject.operation, subject.place
    if subject.label != "edited" or not operation or not place:
        return []
    known = [name.replace("_", " ") for name in EDITS]
    wrong_operation = rng.choice([name for name in known if name != operation])
    wrong_place = rng.choice([name for name in PLACES if name != place])
    return [
        (f"{_capital(name)} at the {where}.", name == operation and where == place)
        for name in (operation, wrong_operation)
        for where in (place, wrong_place)
    ]


def _by_reason(made: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by the generated image's reason: its kind, else its generator, if there are at least two."""
    for reason_of in (
        lambda twin: KIND_WORDS.get(twin.kind),
        lambda twin: twin.generator and f"{twin.generator} made it",
    ):
        by_reason: dict[str, list[Pair]] = defaultdict(list)
        for pair in made:
            if reason := reason_of(pair[1]):
                by_reason[reason].append(pair)
        if len(by_reason) > 1:
            return by_reason
    return {"": list(made)} if made else {}


def _grids(known: Collection[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Every choice of two operations and two places whose four combinations are all `known`."""
    operations, places = (sorted({words[i] for words in known}) for i in (0, 1))
    squares = itertools.product(itertools.combinations(operations, 2), itertools.combinations(places, 2))
    grids = [list(itertools.product(*square)) for square in squares]
    return [grid for grid in grids if set(grid) <= set(known)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
