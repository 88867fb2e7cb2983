"""Build a benchmark from a dataset so that its text does not leak its answers.

    items = build(pairs, {"true_false": 200}, seed=0)       # records.Item, their images named by `Source`
    image = opened(item.images[0], data, seed=0)            # the image, after its operation

Items come in blocks of one text: the same question with the same options is asked about as many images as it has
answers, and each answer is right for one of them. Any predictor that sees only the text (the longest option, a letter,
the words, a model shown a blank image) therefore scores exactly chance over a block. Each kind of question defines its
blocks (`questions/kinds/`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.images.decode import decode_image
from vlm_detect.images.encode import through_jpeg
from vlm_detect.questions.kind import KINDS, Block
from vlm_detect.records import Item, Pair


def default_sizes() -> dict[str, int]:
    """{kind: maximum number of items}, for every kind that a benchmark contains."""
    return {name: kind.default_size for name, kind in KINDS.items() if kind.in_benchmark}


def sizes_from(options: Any) -> dict[str, int]:
    """`default_sizes` updated by the options: `n_<kind>`, and `n_items` with "KIND=N" for other kinds."""
    sizes = default_sizes()
    sizes |= {name: getattr(options, f"n_{name}") for name in sizes if hasattr(options, f"n_{name}")}
    for given in options.n_items:
        name, _, count = given.partition("=")
        KINDS.check(name, flag="--n_items")
        if name not in sizes or not count.isdecimal():
            raise UserError(f"--n_items {given}: give KIND=N, with a KIND of {', '.join(sizes)}")
        sizes[name] = int(count)
    return sizes


def build(pairs: Sequence[Pair], sizes: Mapping[str, int] | None = None, seed: int = 0) -> list[Item]:
    """Build at most `sizes` items of each kind; fewer where `pairs` do not give enough distinct ones.

    `sizes` defaults to `default_sizes`. The ids are left empty.
    """
    made = [pair for pair in pairs if pair[1].label == "generated"]
    edits = [pair for pair in pairs if pair[1].label == "edited"]
    items: list[Item] = []
    for name, size in (default_sizes() | dict(sizes or {})).items():
        items += _fill(KINDS[name].blocks(made, edits, random.Random(f"{seed}:{name}")), size)
    return items


def _fill(blocks: Iterator[Block], size: int) -> list[Item]:
    """Complete blocks of equal length, up to `size` items: a partial block would be unbalanced.

    No item is repeated (a photo with several twins would be): its answers would count as independent.
    """
    items: list[Item] = []
    asked: set[tuple[object, ...]] = set()
    for block in blocks if size else ():
        if len(items) + len(block) > size:
            break
        keys = [(item.images, item.question, item.options) for item in block]
        if asked.isdisjoint(keys):
            asked.update(keys)
            items += block
    return items


def opened(shown: str, data: Callable[[str], bytes], seed: int) -> Image.Image:
    """An image as an item shows it; `data` gives the file of a `Source.ref`; `seed` seeds the operation."""
    ref, _, operation = shown.partition("#")
    return operate(decode_image(data(ref)).image, operation, random.Random(f"{seed}:{ref}:{operation}"))


def operate(image: Image.Image, operation: str, rng: random.Random) -> Image.Image:
    """Apply one of `questions.kinds.multiple_choice.OPERATIONS`; "" leaves the image unchanged."""
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
        return through_jpeg(image, rng.randint(20, 45))
    return image
