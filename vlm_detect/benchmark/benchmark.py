"""A benchmark in memory: validated items, and how their images are opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from vlm_detect.records import Item

if TYPE_CHECKING:
    from vlm_detect.benchmark.dataset_images import DatasetImages


@dataclass(frozen=True)
class Benchmark:
    """Validated items, how to open their images, and what was skipped."""

    name: str
    items: list[Item]
    image: Callable[[str], Image.Image]
    sha256: str  # of the file or, for a dataset, of its images and metadata; compared by a resumed run
    answers: dict[str, str] = field(default_factory=dict)  # id -> recorded answer, where the file has any
    skipped: list[str] = field(default_factory=list)
    dataset: DatasetImages | None = None  # what the items were made of, where that is a dataset
