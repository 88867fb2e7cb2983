"""What a model scores without seeing the image asked about: it is shown a blank one, or another item's."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from vlm_detect.bench.items import Benchmark
from vlm_detect.bench.score import ScoringEngine, item_image, score
from vlm_detect.bench.summary import summarise
from vlm_detect.infer.engine import Ask
from vlm_detect.records import Item

GREY = (128, 128, 128)


def model_floors(
    benchmark: Benchmark, engine: ScoringEngine, *, seed: int = 0, batch_size: int = 8
) -> dict[str, float]:
    """{blank_image, other_image}: accuracies by log-probability, both polarities and all rotations asked."""
    return {
        "blank_image": _accuracy(benchmark, engine, lambda item: Image.new("RGB", (256, 256), GREY), batch_size),
        "other_image": _accuracy(benchmark, engine, _others(benchmark, seed), batch_size),
    }


def _others(benchmark: Benchmark, seed: int) -> Callable[[Item], Image.Image]:
    """Every item gets the image of another one: a drawn order, shifted by one."""
    order = random.Random(seed).sample(benchmark.items, len(benchmark.items))
    other = {item.id: order[i - 1] for i, item in enumerate(order)}
    return lambda item: item_image(benchmark, other[item.id])


def _accuracy(
    benchmark: Benchmark, engine: ScoringEngine, image_of: Callable[[Item], Image.Image], batch_size: int
) -> float:
    batches = score(benchmark, engine, ask=Ask, generate=False, batch_size=batch_size, image_of=image_of)
    results = [result for batch in batches for result in batch]
    return float(summarise(results, resamples=2)["accuracy"] or 0.0)
