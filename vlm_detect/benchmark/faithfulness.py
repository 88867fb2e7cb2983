"""Does a verdict rest on the places that its explanation names? They are hidden, and filled with the photo's pixels.

    wanted = probes(rows, images, most=200, seed=0)
    records = kept.all(wanted, asker(engine, images), batch=8, about="...")
    faithfulness_figures(wanted, records)       # {"hiding": {"n": 180, "share": 0.57, "ci95": [...]}, "pasting": {...}}

Hiding is comprehensiveness (J. DeYoung et al., "ERASER: a benchmark to evaluate rationalized NLP models", ACL 2020):
the nats by which the verdict's support falls when a box is painted in the image's mean colour. It is compared with
random boxes of the same size, since hiding anything moves a verdict. Pasting does the same to a twin with its photo's
pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageStat

from vlm_detect.benchmark.checked import Checked
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.score import ScoringEngine
from vlm_detect.benchmark.truth import ratio
from vlm_detect.infer.verdict import TOPIC_ASKS, mean_odds
from vlm_detect.questions.prompts import topic_of
from vlm_detect.records import Item, Topic
from vlm_detect.stats.intervals import RESAMPLES

RANDOM_BOXES = 3
_TRIES = 50  # places of a random box that are looked at for one that leaves the named one alone

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two outside


@dataclass(frozen=True)
class Probe:
    """One named box of an explained image, and random ones of its size."""

    item: Item
    box: Box
    others: tuple[Box, ...]

    @property
    def key(self) -> str:
        return f"{self.item.id} {self.box} {self.others}"

    @property
    def topic(self) -> Topic:
        return topic_of(self.item)


def probes(rows: Sequence[Checked], *, most: int, seed: int = 0) -> list[Probe]:
    """Of at most `most` explanations that name a place, each place that they name."""
    found: list[Probe] = []
    named = [(row, row.named_boxes) for row in rows if row.named_boxes]
    for row, boxes in named[:most]:
        rng = random.Random(f"faithfulness:{seed}:{row.item.id}")
        found += [Probe(row.item, box, random_boxes(box, row.measured.size, rng)) for box in boxes]
    return found


def random_boxes(box: Box, size: tuple[int, int], rng: random.Random, n: int = RANDOM_BOXES) -> tuple[Box, ...]:
    """`n` boxes as large as `box` anywhere in an image of `size` (width, height), off the box where there is room."""
    return tuple(_random_box(box, size, rng) for _ in range(n))


def _random_box(box: Box, size: tuple[int, int], rng: random.Random) -> Box:
    width, height = box[2] - box[0], box[3] - box[1]
    tried = []
    for _ in range(_TRIES):
        x, y = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
        shared = max(0, width - abs(x - box[0])) * max(0, height - abs(y - box[1]))
        tried.append((shared, (x, y, x + width, y + height)))
        if not shared:
            break
    return min(tried, key=lambda one: one[0])[1]


def asker(engine: ScoringEngine, images: DatasetImages) -> Callable[[Sequence[Probe]], list[dict[str, Any]]]:
    """Asks for the log-odds of images as they are, with each box hidden, and with the photo's pixels in it."""

    def ask(some: Sequence[Probe]) -> list[dict[str, Any]]:
        copies: list[Image.Image] = []
        topics: list[Topic] = []
        for probe in some:
            (ref,) = probe.item.images
            image, photo = images.image(ref), images.photo_of(ref)
            boxes = (probe.box, *probe.others)
            made = [image, *(hidden(image, box) for box in boxes)]
            if photo:
                made += [pasted(image, images.image(photo), box) for box in boxes]
            copies += made
            topics += [probe.topic] * len(made)
        scored = engine.score(copies, [TOPIC_ASKS[topic] for topic in topics])
        odds = iter([mean_odds(asked) for asked in scored])
        found = []
        for probe in some:
            boxes = (probe.box, *probe.others)
            record: dict[str, Any] = {"odds": next(odds), "hidden": [next(odds) for _ in boxes]}
            if images.photo_of(probe.item.images[0]):
                record["pasted"] = [next(odds) for _ in boxes]
            found.append(record)
        return found

    return ask


def hidden(image: Image.Image, box: Box) -> Image.Image:
    """A copy of an RGB image with `box` in the image's mean colour."""
    copy = image.copy()
    copy.paste(tuple(round(mean) for mean in ImageStat.Stat(image).mean), box)
    return copy


def pasted(twin: Image.Image, photo: Image.Image, box: Box) -> Image.Image:
    """A copy of the twin with what its photo has in `box`; a photo of another size is brought to the twin's."""
    photo = photo if photo.size == twin.size else photo.resize(twin.size, Image.Resampling.LANCZOS)
    copy = twin.copy()
    copy.paste(photo.crop(box), box)
    return copy


def faithfulness_figures(
    wanted: Sequence[Probe], records: Sequence[dict[str, Any]], *, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """How often the named box takes more from the verdict than a random one (0.5: places that do not matter).

    `nats` and `nats_random` are the mean falls. None without a named place.
    """
    hiding, pasting = [], []
    for probe, record in zip(wanted, records, strict=True):
        sign = 1 if record["odds"] > 0 else -1  # what the verdict is supported by
        hiding.append((probe.item.group, [sign * (record["odds"] - odds) for odds in record["hidden"]]))
        if "pasted" in record:
            pasting.append((probe.item.group, [record["odds"] - odds for odds in record["pasted"]]))
    sides = {"hiding": _compared(hiding, resamples), "pasting": _compared(pasting, resamples)}
    return {name: side for name, side in sides.items() if side} or None


def _compared(falls: Sequence[tuple[str, Sequence[float]]], resamples: int) -> dict[str, Any] | None:
    """Of each probe the falls by the named box and by each random one."""
    if not falls:
        return None
    table = np.array([values for _, values in falls])  # (n, 1 + RANDOM_BOXES)
    named, others = table[:, :1], table[:, 1:]
    wins = (0.5 + 0.5 * np.sign(named - others)).mean(axis=1)
    found = ratio([group for group, _ in falls], np.stack([wins, np.ones(len(wins))], axis=1), resamples)
    return {**(found or {}), "nats": float(named.mean()), "nats_random": float(others.mean())}
