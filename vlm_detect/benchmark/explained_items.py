"""Items that ask for an explanation of a dataset's images: what `--explanations N` adds to its yes/no items.

    benchmark = with_explanations(benchmark, 200, seed=0)

Photos, generated and edited images are asked about in equal number. The images of N are among those of a greater one,
so that a run over more of them continues with the recorded answers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.errors import UserError
from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION
from vlm_detect.questions.kinds.explain import explanation
from vlm_detect.records import Item


def with_explanations(benchmark: Benchmark, n: int, *, seed: int = 0) -> Benchmark:
    """The benchmark with an open item about each of `n` of its images, which come first; UserError without a dataset.

    What is asked together is then encoded and generated in full batches.
    """
    if benchmark.dataset is None:
        raise UserError(f"{benchmark.name}: --explanations asks about the images of a dataset folder; give one")
    chosen = _chosen(benchmark.items, n, seed)
    explained = [_open_item(item, benchmark.dataset) for item in chosen]
    first = {item.id for item in chosen}
    rest = [item for item in benchmark.items if item.id not in first]
    return replace(benchmark, items=[*chain.from_iterable(zip(chosen, explained, strict=True)), *rest])


def _chosen(items: list[Item], n: int, seed: int) -> list[Item]:
    """At most `n` items, each image once, one of each label in turn."""
    by_label: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        label, asked = item.metadata["label"], item.metadata["asked"]
        if (label == "edited") == (asked == "edited"):  # of an untouched image there are no reasons for that
            by_label[label].append(item)
    shuffled = [
        random.Random(f"explanations:{seed}:{label}").sample(some, len(some))
        for label, some in sorted(by_label.items())
    ]
    return [item for item in chain.from_iterable(zip_longest(*shuffled)) if item is not None][:n]


def _open_item(item: Item, images: DatasetImages) -> Item:
    (ref,) = item.images
    subject = images.subject(ref)
    topic, question = ("edit", EDIT_EXPLAIN_QUESTION) if subject.label == "edited" else ("generation", EXPLAIN_QUESTION)
    facts: dict[str, Any] = dict(item.metadata)
    if subject.edit and subject.operation and subject.place:
        facts["edit"] = {"operation": subject.operation, "place": subject.place, "box": list(subject.edit["box"])}
    reference = explanation(subject, topic)  # type: ignore[arg-type]
    return Item(f"{item.id}/explain", "open", item.images, question, reference, (), facts)
