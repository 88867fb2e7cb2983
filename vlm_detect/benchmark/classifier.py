"""Let an image classifier (a run of `vlm-detect train cnn`) answer a benchmark by its class probabilities.

    for results in classify(benchmark, CnnDetector.load("runs/cnn"), done=set()): writer.write(results)

True/false items are answered by the probability of "generated" (or "edited"), attributions by the probabilities of the
generators where it knows all of them, two images side by side by scoring each. In a multiple choice it knows the class
only: options of one class are equally likely, so a correct class earns a share of the point. What it cannot answer (an
edit, for a classifier trained without edits) is a tie: chance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from scipy.special import expit

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.results import Key
from vlm_detect.benchmark.score import EVERY_IMAGE, left_to_do, plan, scored_result
from vlm_detect.questions.kind import KINDS
from vlm_detect.questions.prompts import Prompt, plain_name, topic_of
from vlm_detect.records import Item, Result
from vlm_detect.stats.metrics import logit

_LEAST = 1e-12
_VERDICT = "verdict"


class Scores(Protocol):
    """`odds` (N,): log-odds of the positive class, in nats; `heads`: probabilities (N, classes)."""

    @property
    def odds(self) -> np.ndarray: ...
    @property
    def heads(self) -> Mapping[str, np.ndarray]: ...


class Classifier(Protocol):
    """The part of `vlm_detect.models.cnn.detector.CnnDetector` that is used here."""

    @property
    def heads(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def positive_class(self) -> str: ...
    def scores(self, images: Sequence[Image.Image]) -> Scores: ...


@dataclass(frozen=True)
class Belief:
    """The prediction for one image; None for classes that the classifier was not trained on."""

    p_generated: float | None
    p_edited: float | None
    by_generator: Mapping[str, float]  # generator names, including "real"; empty without a generator head


def classify(
    benchmark: Benchmark,
    classifier: Classifier,
    *,
    done: Collection[Key] = (),
    shard: slice = EVERY_IMAGE,
    batch_size: int = 64,
    image_of: Callable[[Item], Image.Image] | None = None,
) -> Iterator[list[Result]]:
    """Yield the results batch by batch; arguments as in `score.score`."""
    work = left_to_do(plan(benchmark, generate=False), done, shard)
    for start in range(0, len(work), batch_size):
        batch = [[prompt for prompt, _ in asked] for asked in work[start : start + batch_size]]
        opened = [_images(benchmark, prompts[0].item, image_of) for prompts in batch]
        beliefs = iter(believe(classifier, [image for images in opened for image in images]))
        yield [
            result
            for prompts, images in zip(batch, opened, strict=True)
            for result in _answered(prompts, [next(beliefs) for _ in images])
        ]


def believe(classifier: Classifier, images: Sequence[Image.Image]) -> list[Belief]:
    """One prediction per image, from the classifier's uncalibrated log-odds."""
    found = classifier.scores(images)
    classes = list(classifier.heads[_VERDICT])
    beliefs = []
    for odds, probabilities in zip(found.odds, found.heads[_VERDICT], strict=True):
        p = dict(zip(classes, map(float, probabilities), strict=True))
        p_positive = float(expit(odds))
        p_generated = p_positive if classifier.positive_class == "generated" else None
        p_edited = p_positive if classifier.positive_class == "edited" else None
        if p_edited is None and "edited" in p:
            p_edited = p["edited"] / max(p["edited"] + p[classes[0]], _LEAST)
        names = {} if {"generated", "edited"} & set(classes) else {plain_name(name): p[name] for name in classes}
        beliefs.append(Belief(p_generated, p_edited, names))
    return beliefs


def candidate_probabilities(prompt: Prompt, belief: Belief) -> np.ndarray:
    """(candidates,) probabilities; candidates that the classifier cannot distinguish share theirs equally."""
    n = len(prompt.candidates)
    if topic_of(prompt.item) == "edit":
        if belief.p_edited is None or not prompt.polarity:
            return np.full(n, 1 / n)
        p_first = belief.p_edited if prompt.polarity == "fake" else 1 - belief.p_edited
        return np.array([p_first, 1 - p_first])
    if belief.p_generated is None or not {True, False} <= set(prompt.fake):
        return np.full(n, 1 / n)
    if KINDS[prompt.item.kind].names_makers:
        makers = zip(prompt.options, prompt.fake, strict=True)
        names = ["real" if fake is False else plain_name(name) for name, fake in makers]
        if set(names) <= belief.by_generator.keys():
            return np.array([belief.by_generator[name] for name in names])
    sides = {True: belief.p_generated, False: 1 - belief.p_generated, None: 0.0}
    return np.array([sides[fake] / prompt.fake.count(fake) for fake in prompt.fake])


def _answered(prompts: Sequence[Prompt], beliefs: Sequence[Belief]) -> Iterator[Result]:
    for prompt in prompts:
        if KINDS[prompt.item.kind].n_images == 2:
            p = _which(prompt, beliefs)
        else:
            p = candidate_probabilities(prompt, beliefs[0])
        yield scored_result(prompt, np.log(np.maximum(p, _LEAST)).tolist(), [1] * len(p))


def _which(prompt: Prompt, beliefs: Sequence[Belief]) -> np.ndarray:
    """Which of two images is generated, by the difference of their log-odds, over the options as shown."""
    left, right = (belief.p_generated for belief in beliefs)
    n = len(prompt.candidates)
    if left is None or right is None or n != 2:
        return np.full(n, 1 / n)
    odds = logit(left) - logit(right)
    p_left = expit(-odds if prompt.item.metadata.get("seeks") == "real" else odds)
    sides = np.array([p_left, 1 - p_left])
    return sides if prompt.rotation == 0 else sides[::-1]


def _images(benchmark: Benchmark, item: Item, image_of: Callable[[Item], Image.Image] | None) -> list[Image.Image]:
    """The two images of a pair; a substitute for the pair is used on both sides."""
    return [benchmark.image(ref) for ref in item.images] if image_of is None else [image_of(item)] * len(item.images)
