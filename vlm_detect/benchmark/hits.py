"""Boxes that explanations name against planted edits, and the place of the most evidence in the map for comparison.

    hit_figures(rows, maps)      # {"named": {"hit": {...}, "iou": {...}}, "evidence_map": {...}, "chance": {...}}

A hit is the middle of one of the two boxes inside the other. What words name is a ninth of the image, so the map counts
as the ninth with the greatest mean, and chance is any ninth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_detect.benchmark.checked import Checked
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.faithfulness import Box
from vlm_detect.benchmark.truth import ratio
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.places import PLACES, box_of
from vlm_detect.records import Item
from vlm_detect.stats.intervals import RESAMPLES


@dataclass(frozen=True)
class MappedEdit:
    """An edited image whose evidence map is wanted."""

    item: Item

    @property
    def key(self) -> str:
        return self.item.id


def planted(rows: Sequence[Checked]) -> list[Checked]:
    """Explanations of edits whose box is known."""
    return [row for row in rows if row.label == "edited" and (row.item.metadata.get("edit") or {}).get("box")]


def mapper(engine: Engine, images: DatasetImages) -> Callable[[Sequence[MappedEdit]], list[dict[str, Any]]]:
    """Finds the place of the most evidence for an alteration."""

    def ask(some: Sequence[MappedEdit]) -> list[dict[str, Any]]:
        return [{"place": strongest_ninth(_values(engine, images, one))} for one in some]

    return ask


def _values(engine: Engine, images: DatasetImages, one: MappedEdit) -> np.ndarray:
    return evidence_map(engine, images.image(one.item.images[0]), topic="edit").values


def strongest_ninth(values: np.ndarray) -> str:
    """The place of a map (rows, columns) whose mean is greatest."""
    thirds = [np.array_split(row, 3, axis=1) for row in np.array_split(values, 3, axis=0)]
    return PLACES[int(np.argmax([part.mean() for row in thirds for part in row]))]


def hit_figures(
    rows: Sequence[Checked], places: Sequence[str | None], *, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """Of `planted` rows: hit rate and IoU of the one box that each names, none and several being misses.

    `places` are those of the evidence maps, None where there is none.
    """
    if not rows:
        return None
    truth: list[Box] = [tuple(row.item.metadata["edit"]["box"]) for row in rows]
    sizes = [row.measured.size for row in rows]
    groups = [row.item.group for row in rows]
    named = [row.named_boxes[0] if len(row.named_boxes) == 1 else None for row in rows]
    mapped = [i for i, place in enumerate(places) if place]
    ninths = [[box_of(place, size) for place in PLACES] for size in sizes]

    def figures(boxes: Sequence[Sequence[Box | None]], some: Sequence[int]) -> dict[str, Any]:
        """The mean over the boxes that each row is given."""
        tables = {
            name: np.array([[np.mean([of(box, truth[i]) for box in boxes[i]]), 1.0] for i in some])
            for name, of in (("hit", is_hit), ("iou", iou))
        }
        return {name: ratio([groups[i] for i in some], table, resamples) for name, table in tables.items()}

    found = {"named": figures([[box] for box in named], range(len(rows)))}
    if mapped:
        of_maps = [[box_of(place, size) if place else None] for place, size in zip(places, sizes, strict=True)]
        found["evidence_map"] = figures(of_maps, mapped)
    return {**found, "chance": figures(ninths, range(len(rows)))}


def is_hit(box: Box | None, truth: Box) -> bool:
    return box is not None and (_has_middle(box, truth) or _has_middle(truth, box))


def _has_middle(box: Box, of: Box) -> bool:
    x, y = (of[0] + of[2]) / 2, (of[1] + of[3]) / 2
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def iou(box: Box | None, truth: Box) -> float:
    """Intersection over union; 0 of no box."""
    if box is None:
        return 0.0
    width, height = (min(box[i + 2], truth[i + 2]) - max(box[i], truth[i]) for i in (0, 1))
    shared = max(0, width) * max(0, height)
    areas = sum((one[2] - one[0]) * (one[3] - one[1]) for one in (box, truth))
    return shared / (areas - shared)
