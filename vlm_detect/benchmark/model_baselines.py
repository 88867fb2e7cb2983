"""A model's blind baselines: its score when it is shown a blank image, or another item's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.respondents import Answer
from vlm_detect.benchmark.score import item_image
from vlm_detect.benchmark.summary import summarise
from vlm_detect.records import Item

GREY = (128, 128, 128)


def model_baselines(
    benchmark: Benchmark, answer: Answer, *, seed: int = 0, count: Callable[[int], object] | None = None
) -> dict[str, dict[str, float]]:
    """{"all" and each row of by_kind: {blank_image, other_image}}: accuracies by log-probability.

    Both polarities and all rotations are asked, as for the real images; `count` is called with the number of answers.
    """
    found: dict[str, dict[str, float]] = {}
    for name, image_of in (("blank_image", _blank), ("other_image", _others(benchmark, seed))):
        results = []
        for batch in answer(benchmark, image_of=image_of):
            results += batch
            if count:
                count(len(batch))
        summary = summarise([result for result in results if result.scoring == "logprob"], resamples=2)
        for row, figures in {"all": summary, **summary["by_kind"]}.items():
            found.setdefault(row, {})[name] = float(figures["accuracy"] or 0.0)
    return found


def _blank(item: Item) -> Image.Image:
    return Image.new("RGB", (256, 256), GREY)


def _others(benchmark: Benchmark, seed: int) -> Callable[[Item], Image.Image]:
    """Give each item another item's image: the next in a random order with the same number of images and another
    group."""
    order = random.Random(seed).sample(benchmark.items, len(benchmark.items))
    places = {item.id: place for place, item in enumerate(order)}

    def other(item: Item) -> Image.Image:
        after = itertools.chain(order[places[item.id] + 1 :], order[: places[item.id]])
        fitting = (one for one in after if one.group != item.group and len(one.images) == len(item.images))
        return item_image(benchmark, next(fitting, item))

    return other
