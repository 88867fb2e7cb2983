"""Where in the image the verdict comes from: what its log-odds lose when a region's features are hidden.

    evidence = evidence_map(engine, photo)
    evidence.values                      # (rows, columns), nats: positive places speak for "generated"
    evidence.overlay(photo).save("map.png")

The tower reads the image once. Overlapping square regions of its features are then replaced by the mean feature, one
region a copy, and all copies are asked the verdict questions in batches: occlusion (Zeiler and Fergus 2014, arXiv
1311.2901) in feature space. It shows what this model's verdict rests on, not what is wrong with the image; and features
have seen their surroundings, so that hiding a place does not hide all that is known of it.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..data.questions import Topic
from ..errors import UserError
from .engine import Engine
from .verdict import TOPIC_ASKS, mean_odds

GENERATED_RGB, REAL_RGB = (230, 97, 1), (0, 92, 184)  # orange and blue: told apart by colour-blind eyes too

Region = tuple[slice, slice]


@dataclass(frozen=True)
class EvidenceMap:
    """`values` (rows, columns) in nats: the mean loss of log-odds over the hidden regions that cover a place."""

    values: np.ndarray
    log_odds: float

    @property
    def peak(self) -> tuple[float, float]:
        """Where the most speaks for "generated": the middle of the place(s), (x, y) as parts of width and height."""
        row, column = np.argwhere(np.isclose(self.values, self.values.max())).mean(axis=0)
        rows, columns = self.values.shape
        return float(column + 0.5) / columns, float(row + 0.5) / rows

    def layer(self, size: tuple[int, int]) -> Image.Image:
        """The map alone, RGBA of `size`: orange speaks for "generated", blue for "real", clear for neither."""
        strongest = max(float(np.abs(self.values).max()), 1e-9)
        strength = Image.fromarray((self.values / strongest).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        signed = np.asarray(strength)
        colour = np.where(signed[..., None] > 0, np.array(GENERATED_RGB), np.array(REAL_RGB))
        alpha = np.clip(np.abs(signed), 0, 1)[..., None] * 190
        return Image.fromarray(np.concatenate([colour, alpha], axis=-1).astype(np.uint8), "RGBA")

    def overlay(self, image: Image.Image) -> Image.Image:
        """The map laid over the image it was made of, RGB."""
        return Image.alpha_composite(image.convert("RGBA"), self.layer(image.size)).convert("RGB")

    def png(self, size: tuple[int, int]) -> bytes:
        """`layer` as a PNG file."""
        buffer = io.BytesIO()
        self.layer(size).save(buffer, "PNG")
        return buffer.getvalue()


def evidence_map(engine: Engine, image: Image.Image, *, topic: Topic = "generation", across: int = 9) -> EvidenceMap:
    """The evidence map of one image; `across` squared regions are hidden, one at a time.

    Topic "edit" asks whether a part of the image was altered. UserError where the model's features have no places.
    """
    steps = evidence_steps(engine, image, topic=topic, across=across)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def evidence_steps(
    engine: Engine, image: Image.Image, *, topic: Topic = "generation", across: int = 9
) -> Generator[float, None, EvidenceMap]:
    """As `evidence_map`, which it returns in the end; yields the part that is done after each batch."""
    grid = engine.vlm.feature_grid
    if grid is None:
        raise UserError(f"{engine.vlm.name}: its image features have no fixed places, so there is no evidence map")
    asks = TOPIC_ASKS[topic]
    hidden = regions(grid[0], grid[1], across)
    (features,) = engine.encode([image])  # (N, D)
    (whole,) = engine.score_prefixes(engine.prefixes([image]), [asks])
    odds = mean_odds(whole)
    loss, count = np.zeros(grid), np.zeros(grid)
    for start in range(0, len(hidden), engine.batch_images):
        some = hidden[start : start + engine.batch_images]
        prefixes = engine.prefill(hide(features, grid, some))
        for region, asked in zip(some, engine.score_prefixes(prefixes, [asks] * len(some)), strict=True):
            loss[region] += odds - mean_odds(asked)
            count[region] += 1
        yield (start + len(some)) / len(hidden)
    return EvidenceMap((loss / count).astype(np.float32), odds)


def regions(rows: int, columns: int, across: int) -> list[Region]:
    """At most `across` by `across` regions of which exactly four cover any place, those at the border cut off by it.

    Were border places covered less often, a cue near them would light them up as much as its own place.
    """

    def spans(side: int) -> list[slice]:
        distance = -(-side // max(1, across - 1))
        return [slice(max(0, start), start + 2 * distance) for start in range(-distance, side, distance)]

    return [(row, column) for row in spans(rows) for column in spans(columns)]


def hide(features: torch.Tensor, grid: tuple[int, int], some: Sequence[Region]) -> torch.Tensor:
    """Copies of features (N, D), each with one region replaced by the mean feature: (len(some), N, D)."""
    copies = features.view(1, *grid, -1).repeat(len(some), 1, 1, 1)
    mean = features.mean(0)
    for copy, region in zip(copies, some, strict=True):
        copy[region] = mean
    return copies.flatten(1, 2)
