"""Builds a benchmark from a dataset so that its text says nothing about its answers.

    items = build(sources, sizes, seed=0)       # what to write, and which image each item shows

Items come in blocks of one text: the same question with the same options is put to as many images as it has answers,
and each answer is right for one of them. Whatever looks at the text alone (the longest option, a letter, the words, a
model shown a blank image) therefore scores exactly chance over a block, whatever it is.

The reasons in a multiple choice are what was truly done. Of a generated image that is its kind or its generator, where
the dataset has more than one; otherwise, and for every photo, a harmless operation that is really carried out (a crop,
a rescaling, a JPEG compression). Generated images get such an operation too, so that it tells nothing about the class.
Edited images are asked for the operation and the place of their planted edit, and whether they were altered at all.
"""

from __future__ import annotations

import io
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlm_detect.places import place_of
from vlm_detect.questions.ask import (
    CAMERA,
    EDIT_CHOICE_QUESTION,
    EDIT_EXPLAIN_QUESTION,
    EDIT_QUESTIONS,
    EDIT_STATEMENTS,
    EXPLAIN_QUESTION,
    FALSE,
    LETTERS,
    NO,
    STATEMENT_QUESTION,
    STATEMENTS,
    TRUE,
    VERDICT_QUESTIONS,
    YES,
    Polarity,
    Subject,
    Topic,
    explanation,
)

CHOICE_QUESTION = "Is this image real or AI-generated, and what was done to it?"
ATTRIBUTION_QUESTION = "What made this image?"
WHICH_QUESTION = "Two images stand side by side. Which of them is AI-generated?"
SIDES = ("The one on the left.", "The one on the right.")
OPERATIONS = {"crop": "it was cropped", "rescale": "it was scaled down", "jpeg": "it was compressed"}
KIND_WORDS = {"caption": "it was drawn from a text", "vae": "it was painted after a photo"}
_MAX_ATTRIBUTIONS = 4
_EDITS_TO_OTHERS = 0.25


@dataclass(frozen=True)
class Source:
    """One image of the dataset; `ref` opens it."""

    ref: str
    label: str  # real, generated or edited
    generator: str
    group: str
    kind: str = ""  # of a twin: caption, vae, edit
    caption: str = ""
    object_class: str = ""
    edit: dict[str, Any] | None = None
    size: tuple[int, int] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        generator = self.generator or ("real" if self.label == "real" else "unknown")
        about = {"label": self.label, "generator": generator, "group": self.group}
        known = {"twin_kind": self.kind, "object_class": self.object_class, "edit": self.told_edit}
        return about | {name: value for name, value in known.items() if value}

    @property
    def told_edit(self) -> dict[str, str] | None:
        """What a planted edit is and where, in words; None where either is not known."""
        if not self.edit or not self.edit.get("operation") or not self.edit.get("box") or not self.size:
            return None
        operation = str(self.edit["operation"]).replace("_", " ")
        return {"operation": operation, "place": place_of(self.edit["box"], self.size)}


@dataclass(frozen=True)
class BuiltItem:
    """An item to be written; `shows` are the images and what is to be done to each ("" for nothing)."""

    kind: str
    question: str
    ground_truth: str
    shows: tuple[tuple[Source, str], ...]
    options: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    true_false: int = 1000
    multiple_choice: int = 1000
    attribution: int = 200
    which_of_two: int = 200
    open: int = 200


ABOUT_EDITS = {"asked": "edited"}
Pair = tuple[Source, Source]  # a photo and what was generated or edited from it


def build(pairs: Sequence[Pair], sizes: Sizes, seed: int = 0) -> list[BuiltItem]:
    """At most `sizes` items of each kind; fewer where `pairs` do not give as many different ones."""
    made = [pair for pair in pairs if pair[1].label == "generated"]
    edits = [pair for pair in pairs if pair[1].label == "edited"]
    items: list[BuiltItem] = []
    for name, blocks, size in (
        ("true_false", true_false_blocks(made, edits), sizes.true_false),
        ("multiple_choice", choice_blocks(made, edits), sizes.multiple_choice),
        ("attribution", attribution_blocks(made), sizes.attribution),
        ("which_of_two", which_blocks(made), sizes.which_of_two),
        ("open", open_blocks(made, edits), sizes.open),
    ):
        rng = random.Random(f"{seed}:{name}")
        items += _fill(blocks(rng), size)
    return items


Blocks = Callable[[random.Random], Iterator[list[BuiltItem]]]


def true_false_blocks(made: Sequence[Pair], edits: Sequence[Pair]) -> Blocks:
    """One question to a photo and to its twin: yes to one of them."""
    asked = _polar_questions(VERDICT_QUESTIONS, STATEMENTS)
    asked_of_edits = _polar_questions(EDIT_QUESTIONS, EDIT_STATEMENTS)

    def of(
        pairs: Sequence[Pair], questions: Sequence[_Polar], about: dict[str, str], rng: random.Random
    ) -> Iterator[list[BuiltItem]]:
        # Each lap asks every pair a question; where the laps start differs from pair to pair.
        for lap in range(len(questions)):
            for i, pair in rng.sample(list(enumerate(pairs)), len(pairs)):
                question, polarity, (yes, no) = questions[(lap + i) % len(questions)]
                yield [
                    BuiltItem(
                        "true_false",
                        question,
                        yes if (source.label == about.get("asked", "generated")) == (polarity == "fake") else no,
                        ((source, ""),),
                        metadata=source.facts | about,
                    )
                    for source in pair
                ]

    return lambda rng: _with_edits(of(made, asked, {}, rng), of(edits, asked_of_edits, ABOUT_EDITS, rng), rng)


def open_blocks(made: Sequence[Pair], edits: Sequence[Pair]) -> Blocks:
    """Verdict and reason in free words, asked of a photo and of its twin; the reference says what was done."""

    def of(pairs: Sequence[Pair], topic: Topic, rng: random.Random) -> Iterator[list[BuiltItem]]:
        for pair in rng.sample(list(pairs), len(pairs)):
            yield [_open_item(source, topic) for source in pair]

    return lambda rng: _with_edits(of(made, "generation", rng), of(edits, "edit", rng), rng)


def _open_item(source: Source, topic: Topic) -> BuiltItem:
    subject = Subject(
        label=source.label,  # type: ignore[arg-type]
        kind=source.kind or None,  # type: ignore[arg-type]
        generator=source.generator,
        caption=source.caption,
        edit=source.edit,
        size=source.size,
    )
    question, about = (EDIT_EXPLAIN_QUESTION, ABOUT_EDITS) if topic == "edit" else (EXPLAIN_QUESTION, {})
    return BuiltItem("open", question, explanation(subject, topic), ((source, ""),), metadata=source.facts | about)


_Polar = tuple[str, Polarity, tuple[str, str]]


def _polar_questions(questions: Mapping[Polarity, str], statements: Mapping[Polarity, str]) -> list[_Polar]:
    """(question, its polarity, (affirming answer, denying answer)) of both ways to ask."""
    asked = [(text, polarity, (YES, NO)) for polarity, text in questions.items()]
    stated = [(STATEMENT_QUESTION.format(statement=text), p, (TRUE, FALSE)) for p, text in statements.items()]
    return asked + stated


def choice_blocks(made: Sequence[Pair], edits: Sequence[Pair]) -> Blocks:
    """Four options to four images: two photos with an operation each, two generated images with a reason each."""
    by_reason = _by_reason(made)

    def blocks(rng: random.Random) -> Iterator[list[BuiltItem]]:
        draws = {reason: _endless(pairs, rng) for reason, pairs in sorted(by_reason.items())}
        seen: set[tuple[str, ...]] = set()
        # Enough draws to find what different blocks there are.
        for _ in range(50 * len(made) + 50 if draws else 0):
            first, second = rng.sample(sorted(draws), 2) if len(draws) > 1 else [next(iter(draws))] * 2
            block = _choice_block(next(draws[first]), next(draws[second]), (first, second), rng)
            key = tuple(
                sorted(f"{item.shows[0][0].ref} {item.shows[0][1]} {item.question}{item.options}" for item in block)
            )
            if key not in seen:
                seen.add(key)
                yield block

    return lambda rng: _with_edits(blocks(rng), _edit_choices(edits, rng), rng)


def _choice_block(one: Pair, two: Pair, words: tuple[str, str], rng: random.Random) -> list[BuiltItem]:
    a, b = rng.sample(sorted(OPERATIONS), 2)
    by_operation = words[0] == words[1]
    reasons = (OPERATIONS[a], OPERATIONS[b]) if by_operation else words
    # A reason other than an operation says nothing of operations: the generated images get theirs by lot.
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
        BuiltItem(
            "multiple_choice",
            CHOICE_QUESTION,
            LETTERS[place],
            ((source, operation),),
            options,
            source.facts | {"operation": operation, "reason": option.partition(", and ")[2].rstrip(".")},
        )
        for place, (option, source, operation) in enumerate(shown)
    ]


def _edit_choices(edits: Sequence[Pair], rng: random.Random) -> Iterator[list[BuiltItem]]:
    """Four edits: two operations at two places where the dataset has such, else any four that are told apart."""
    waiting: dict[tuple[str, str], list[Source]] = defaultdict(list)
    known = [twin for _, twin in edits if twin.told_edit]
    for twin in rng.sample(known, len(known)):
        assert twin.told_edit is not None
        waiting[twin.told_edit["operation"], twin.told_edit["place"]].append(twin)
    while len(waiting) >= 4:
        told = rng.choice(_grids(waiting) or [rng.sample(sorted(waiting), 4)])
        sources = [waiting[words].pop() for words in rng.sample(told, 4)]
        waiting = defaultdict(list, {words: left for words, left in waiting.items() if left})
        options = tuple(_edit_option(source) for source in sources)
        yield [
            BuiltItem(
                "multiple_choice",
                EDIT_CHOICE_QUESTION,
                letter,
                ((source, ""),),
                options,
                source.facts | ABOUT_EDITS,
            )
            for letter, source in zip(LETTERS, sources, strict=False)
        ]


def _grids(known: Collection[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Every choice of two operations and two places whose four combinations are all `known`."""
    operations, places = (sorted({words[i] for words in known}) for i in (0, 1))
    squares = itertools.product(itertools.combinations(operations, 2), itertools.combinations(places, 2))
    grids = [list(itertools.product(*square)) for square in squares]
    return [grid for grid in grids if set(grid) <= set(known)]


def attribution_blocks(made: Sequence[Pair]) -> Blocks:
    """Two to four makers, the camera among them, and an image by each."""

    def blocks(rng: random.Random) -> Iterator[list[BuiltItem]]:
        by_generator: dict[str, list[Pair]] = defaultdict(list)
        for pair in made:
            if pair[1].generator:
                by_generator[pair[1].generator].append(pair)
        if not by_generator:
            return
        draws = {name: _endless(pairs, rng) for name, pairs in sorted(by_generator.items())}
        # As many blocks as the rarest maker has images: no image is asked about twice.
        for _ in range(min(map(len, by_generator.values()))):
            names = rng.sample(sorted(draws), min(len(draws), _MAX_ATTRIBUTIONS - 1))
            pairs = {name: next(draws[name]) for name in names}
            photo = pairs[names[0]][0]
            shown = [(CAMERA, photo), *((f"{name}.", pair[1]) for name, pair in pairs.items())]
            rng.shuffle(shown)
            options = tuple(option for option, _ in shown)
            yield [
                BuiltItem("attribution", ATTRIBUTION_QUESTION, LETTERS[i], ((source, ""),), options, source.facts)
                for i, (_, source) in enumerate(shown)
            ]

    return blocks


def which_blocks(made: Sequence[Pair]) -> Blocks:
    """A photo and its twin side by side, in both orders."""

    def blocks(rng: random.Random) -> Iterator[list[BuiltItem]]:
        for photo, twin in rng.sample(list(made), len(made)):
            yield [
                BuiltItem(
                    "which_of_two",
                    WHICH_QUESTION,
                    LETTERS[order.index(twin)],
                    tuple((source, "") for source in order),
                    SIDES,
                    twin.facts,
                )
                for order in ((photo, twin), (twin, photo))
            ]

    return blocks


def operate(image: Image.Image, operation: str, rng: random.Random) -> Image.Image:
    """Carry out one of `OPERATIONS`."""
    width, height = image.size
    if operation == "crop":
        share = rng.uniform(0.6, 0.85)
        w, h = max(1, round(width * share)), max(1, round(height * share))
        x, y = rng.randint(0, width - w), rng.randint(0, height - h)
        return image.crop((x, y, x + w, y + h))
    if operation == "rescale":
        share = rng.uniform(0.4, 0.7)
        size = max(1, round(width * share)), max(1, round(height * share))
        return image.resize(size, Image.Resampling.LANCZOS)
    if operation == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(20, 45))
        return Image.open(buffer).convert("RGB")
    return image


def _by_reason(made: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by how the generated image's reason reads: its kind, else its generator, where there are at least two."""
    for told in (lambda twin: KIND_WORDS.get(twin.kind), lambda twin: twin.generator and f"{twin.generator} made it"):
        by_reason: dict[str, list[Pair]] = defaultdict(list)
        for pair in made:
            if reason := told(pair[1]):
                by_reason[reason].append(pair)
        if len(by_reason) > 1:
            return by_reason
    return {"": list(made)} if made else {}


def _with_edits(
    blocks: Iterator[list[BuiltItem]], edit_blocks: Iterator[list[BuiltItem]], rng: random.Random
) -> Iterator[list[BuiltItem]]:
    """One block about edits for about four of the others, while there are both."""
    for block in blocks:
        if rng.random() < _EDITS_TO_OTHERS and (edit_block := next(edit_blocks, None)):
            yield edit_block
        yield block
    yield from edit_blocks


def _fill(blocks: Iterator[list[BuiltItem]], size: int) -> list[BuiltItem]:
    """Whole blocks, of one length, up to `size` items: part of one would tip the balance.

    No item comes twice, as a photo with several twins would: its answers would count as so many independent ones.
    """
    items: list[BuiltItem] = []
    asked: set[tuple[Any, ...]] = set()
    for block in blocks if size else ():
        if len(items) + len(block) > size:
            break
        shown = [tuple((source.ref, operation) for source, operation in item.shows) for item in block]
        keys = [(refs, item.question, item.options) for refs, item in zip(shown, block, strict=True)]
        if asked.isdisjoint(keys):
            asked.update(keys)
            items += block
    return items


def _endless(pairs: Sequence[Pair], rng: random.Random) -> Iterator[Pair]:
    """Every pair once in a drawn order, then again in another."""
    while True:
        yield from rng.sample(list(pairs), len(pairs))


def _edit_option(source: Source) -> str:
    assert source.told_edit is not None
    words = source.told_edit
    return f"{words['operation'][0].upper()}{words['operation'][1:]} at the {words['place']}."
