"""A kind of question, for training and benchmarks: asking, parsing and scoring. One file per kind, in `kinds/`.

    @question("fingers")
    class Fingers(QuestionKind):
        def ask(self, subject, polarity, rng, *, topic, other_captions): ...      # in training
        def blocks(self, made, edits, rng): ...                                   # in a benchmark that is built

    KINDS["yes_no"].ask(subject, "fake", rng, topic="generation", other_captions=())

A kind overrides what differs: one for training only has no `blocks`, one for benchmarks only has no `ask`.
How an item is asked, read and scored follows from its options and its ground truth unless the kind says otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, TypeVar

from vlm_detect.plugins import Registry
from vlm_detect.questions.prompts import Prompt, plain_name, polarities, rotations, topic_of
from vlm_detect.questions.read import parse_answer, parse_choice
from vlm_detect.records import Item, Pair, Polarity, Question, Subject, Topic, is_real_name

Block = list[Item]  # items with the same text, where each answer is right for one of the images


class Reading(NamedTuple):
    """A free answer parsed to one of the prompt's candidates (None: unparsed), and whether it is right."""

    parsed: str | None
    correct: bool


class QuestionKind:
    """A kind of question about an image."""

    name: ClassVar[str] = ""  # set when it is registered

    # Training
    varies: ClassVar[bool] = False  # a second question about an image differs: the other polarity, other options

    # Benchmark
    in_benchmark: ClassVar[bool] = False  # whether an item can be of this kind
    default_size: ClassVar[int] = 0  # items of this kind in a benchmark that is built, at most
    n_images: ClassVar[int] = 1  # per item
    is_open: ClassVar[bool] = False  # answered in free text
    is_verdict: ClassVar[bool] = False  # the answer itself says real or generated (altered or not)
    chooses: ClassVar[bool] = False  # the answer is the option with the highest mean probability over all prompts
    names_makers: ClassVar[bool] = False  # the options are generators and the camera
    states_verdicts: ClassVar[bool] = False  # whether `says_fake` returns the verdict of an answer or an option
    gives_reasons: ClassVar[bool] = False  # an option is a verdict and its reason, each scored separately

    @property
    def trains(self) -> bool:
        """Whether it is available in training."""
        return type(self).ask is not QuestionKind.ask

    def ask(
        self,
        subject: Subject,
        polarity: Polarity,
        rng: random.Random,
        *,
        topic: Topic,
        other_captions: Sequence[str],
    ) -> Question | None:
        """A training question about `subject`, or None if the known facts about the image do not answer it.

        Edited images are not asked about with topic "generation".
        """
        return None

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        """Benchmark items from pairs with a generated and with an edited twin, block by block.

        Every answer to the text of a block must be right for equally many of its items, so that only the images decide.
        An item's id is empty, its images are `Source.ref` or `Source.changed(...)`.
        """
        return iter(())

    def prompts(self, item: Item, makers: Sequence[str] = ()) -> list[Prompt]:
        """Every prompt of `item`, first the item as written; `makers` are all makers in the benchmark.

        Raises:
            ValueError: if the ground truth is no answer to the question.
        """
        return rotations(item, self.says_fake) if item.options else polarities(item)

    def is_fake(self, item: Item) -> bool | None:
        """The truth about the image: True generated, False real, None if the question is about something else."""
        if topic_of(item) == "edit":
            return None
        first = self.prompts(item)[0]
        return None if first.right is None else first.fake[first.right]

    def says_fake(self, answer: str) -> bool | None:
        """The verdict that the text of an option or an answer states; None if there is none."""
        return None

    def read(self, prompt: Prompt, text: str) -> Reading:
        """Parse a free answer strictly."""
        parsed: str | None
        if prompt.lettered:
            parsed = parse_choice(text, prompt.candidates, prompt.options)
        else:
            place = parse_answer(text, prompt.candidates)
            parsed = None if place is None else prompt.candidates[place]
        return Reading(parsed, parsed is not None and parsed == prompt.ground_truth)


KINDS: Registry[QuestionKind] = Registry(
    "question",
    [
        "vlm_detect.questions.kinds.yes_no",
        "vlm_detect.questions.kinds.true_false",
        "vlm_detect.questions.kinds.multiple_choice",
        "vlm_detect.questions.kinds.attribution",
        "vlm_detect.questions.kinds.operation",
        "vlm_detect.questions.kinds.place",
        "vlm_detect.questions.kinds.explain",
        "vlm_detect.questions.kinds.which_of_two",
        "vlm_detect.questions.kinds.open",
    ],
)
Kind = TypeVar("Kind", bound=type[QuestionKind])


def question(name: str) -> Callable[[Kind], Kind]:
    """Register a kind of question."""

    def register(cls: Kind) -> Kind:
        cls.name = name
        KINDS.add(name, cls(), cls)
        return cls

    return register


def training_kinds() -> list[str]:
    """The kinds of this package that training can ask, in their fixed order."""
    return [name for name in KINDS.own if KINDS[name].trains]


def prompts_of(item: Item, makers: Sequence[str] = ()) -> list[Prompt]:
    """See `QuestionKind.prompts`."""
    return KINDS[item.kind].prompts(item, makers)


def is_fake(item: Item) -> bool | None:
    """See `QuestionKind.is_fake`."""
    return KINDS[item.kind].is_fake(item)


def generator_of(item: Item) -> str:
    """The normalised name of the item's generator: "big gan" and "big_gan" are the same, "natural" is "real"."""
    name = plain_name(str(item.metadata.get("generator") or ""))
    if is_real_name(name):
        return "unknown" if is_fake(item) else "real"
    return name


def makers_in(items: Sequence[Item]) -> list[str]:
    """The answers of attribution items without options, which choose among all of them."""
    return sorted({item.ground_truth for item in items if KINDS[item.kind].names_makers and not item.options})
