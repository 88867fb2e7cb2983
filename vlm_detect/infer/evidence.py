"""Evidence maps: how much the verdict's log-odds drop when the features of a region are hidden.

    evidence = evidence_map(engine, photo)
    evidence.values                      # (rows, columns), nats: positive places are evidence for "generated"
    evidence.overlay(photo).save("map.png")

The tower reads the image once. Overlapping square regions of its features are then replaced by the mean feature, one
region per copy, and all copies are asked the verdict questions in batches: occlusion (Zeiler and Fergus 2014, arXiv
1311.2901) in feature space. It shows what this model's verdict depends on, not what is wrong with the image; and
features also encode their surroundings, so hiding a place does not remove all information about it.

For a model whose features are not in spatial order (most except moondream), regions of the image itself are painted
with its mean colour, and the tower reads every copy; a patch of one colour is itself a visible feature. For edits
(topic "edit") this is done with every model, because the tower spreads what it has seen of an edit to other places.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageStat

from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.verdict import TOPIC_ASKS, mean_odds
from vlm_detect.records import Topic

PIXEL_GRID = (8, 8)  # for maps whose regions are hidden in the image
GENERATED_RGB, REAL_RGB = (230, 97, 1), (0, 92, 184)  # orange and blue: distinguishable with colour blindness

Region = tuple[slice, slice]


@dataclass(frozen=True)
class EvidenceMap:
    """`values` (rows, columns) in nats: the mean drop of log-odds over the hidden regions that cover a place."""

    values: np.ndarray
    log_odds: float

    @property
    def peak(self) -> tuple[float, float]:
        """The strongest evidence for "generated": the centre of the place(s), (x, y) as fractions of width and
        height."""
        row, column = np.argwhere(np.isclose(self.values, self.values.max())).mean(axis=0)
        rows, columns = self.values.shape
        return float(column + 0.5) / columns, float(row + 0.5) / rows

    def layer(self, size: tuple[int, int]) -> Image.Image:
        """The map alone, RGBA of `size`: orange is evidence for "generated", blue for "real", transparent for
        neither."""
        strongest = max(float(np.abs(self.values).max()), 1e-9)
        strength = Image.fromarray((self.values / strongest).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        signed = np.asarray(strength)
        colour = np.where(signed[..., None] > 0, np.array(GENERATED_RGB), np.array(REAL_RGB))
        alpha = np.clip(np.abs(signed), 0, 1)[..., None] * 190
        return Image.fromarray(np.concatenate([colour, alpha], axis=-1).astype(np.uint8), "RGBA")

    def overlay(self, image: Image.Image) -> Image.Image:
        """The map overlaid on its image, RGB."""
        return Image.alpha_composite(image.convert("RGBA"), self.layer(image.size)).convert("RGB")

    def png(self, size: tuple[int, int]) -> bytes:
        """`layer` as a PNG file."""
        buffer = io.BytesIO()
        self.layer(size).save(buffer, "PNG")
        return buffer.getvalue()


def evidence_map(engine: Engine, image: Image.Image, *, topic: Topic = "generation", across: int = 9) -> EvidenceMap:
    """The evidence map of one image; `across` x `across` regions are hidden, one at a time.

    Topic "edit" asks whether a part of the image was altered.
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
    """As `evidence_map`, yielding progress (0 to 1) after each batch; returns the map."""
    asks = TOPIC_ASKS[topic]
    places = engine.vlm.feature_grid if topic == "generation" else None
    grid = places or PIXEL_GRID
    ask_hidden = (_in_features if places else _in_pixels)(engine, image, grid, asks)
    hidden = regions(*grid, across)
    (whole,) = engine.score([image], [asks])
    odds = mean_odds(whole)
    loss, count = np.zeros(grid), np.zeros(grid)
    done = 0
    for some in engine.images_at_once.batches(hidden):
        for region, without in zip(some, engine.images_at_once.run(some, ask_hidden), strict=True):
            loss[region] += odds - without
            count[region] += 1
        done += len(some)
        yield done / len(hidden)
    return EvidenceMap((loss / count).astype(np.float32), odds)


AskHidden = Callable[[Sequence[Region]], list[float]]  # the log-odds with each of the regions hidden


def _in_features(engine: Engine, image: Image.Image, grid: tuple[int, int], asks: Sequence[Ask]) -> AskHidden:
    (features,) = engine.encode([image])  # (N, D)

    def ask(some: Sequence[Region]) -> list[float]:
        prefixes = engine.prefill(hide(features, grid, some))
        return [mean_odds(asked) for asked in engine.score_prefixes(prefixes, [asks] * len(some))]

    return ask


def _in_pixels(engine: Engine, image: Image.Image, grid: tuple[int, int], asks: Sequence[Ask]) -> AskHidden:
    # These copies are used once: their prefixes are not cached.
    forgetful = Engine(engine.vlm, batch_images=engine.batch_images, cache_bytes=0)

    def ask(some: Sequence[Region]) -> list[float]:
        copies = [paint_over(image, grid, region) for region in some]
        return [mean_odds(asked) for asked in forgetful.score(copies, [asks] * len(copies))]

    return ask


def regions(rows: int, columns: int, across: int) -> list[Region]:
    """At most `across` by `across` regions; exactly four cover any place, and regions at the border are clipped.

    If border places were covered less often, a cue near them would highlight them as much as its own place.
    """

    def spans(side: int) -> list[slice]:
        distance = -(-side // max(1, across - 1))
        return [slice(max(0, start), start + 2 * distance) for start in range(-distance, side, distance)]

    return [(row, column) for row in spans(rows) for column in spans(columns)]


def hide(features: torch.Tensor, grid: tuple[int, int], some: Sequence[Region]) -> torch.Tensor:
    """Copies of features (N, D), each with one region replaced by the mean feature: (len(some), N, D).

    What stands behind those of the grid (expert tokens) stays.
    """
    places, behind = features.split([grid[0] * grid[1], len(features) - grid[0] * grid[1]])
    copies = places.view(1, *grid, -1).repeat(len(some), 1, 1, 1)
    mean = places.mean(0)
    for copy, region in zip(copies, some, strict=True):
        copy[region] = mean
    return torch.cat([copies.flatten(1, 2), behind.expand(len(some), -1, -1)], dim=1)


def paint_over(image: Image.Image, grid: tuple[int, int], region: Region) -> Image.Image:
    """A copy of an RGB image with one region of its `grid` (rows, columns) in the image's mean colour."""
    top, bottom = (round(edge * image.height / grid[0]) for edge in (region[0].start, region[0].stop))
    left, right = (round(edge * image.width / grid[1]) for edge in (region[1].start, region[1].stop))
    copy = image.copy()
    copy.paste(tuple(round(mean) for mean in ImageStat.Stat(image).mean), (left, top, right, bottom))
    return copy
