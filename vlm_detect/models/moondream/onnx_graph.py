"""moondream's tower as an ONNX graph of one image: the crops of any tiling, stitched and pooled inside of the graph.

    whole (1, 3, C, C) and tiles (rows, columns, 3, C, C), uint8 RGB -> through the projection, once

`MoondreamImageProcessor.crops` cuts both. Stitching and adaptive pooling are sums with weights that follow from the
number of tiles, so that one graph takes every tiling; `MoondreamVision.forward` is the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm_detect.models.moondream.image_processing import pixel_table
from vlm_detect.models.moondream.vision import MoondreamVision


class MoondreamTower(nn.Module):
    levels: Tensor  # (256,) the value of each grey level

    def __init__(self, vision: MoondreamVision) -> None:
        super().__init__()
        self.vision = vision
        self.grid, self.margin = vision.config.grid_size, vision.config.overlap_margin
        self.register_buffer("levels", torch.from_numpy(pixel_table(getattr(torch, vision.pixel_dtype))))

    def forward(self, whole: Tensor, tiles: Tensor) -> Tensor:
        """The embeddings (1, G*G, D_text) of an image."""
        rows, columns = tiles.shape[:2]
        features = self.vision.encode_crops(self.levels[torch.cat([whole, tiles.flatten(0, 1)]).long()])
        parts = features[1:].view(rows, columns, self.grid, self.grid, -1)
        stitched_rows = torch.einsum("pri,rcijd->pcjd", self._weights(rows), parts)
        local = torch.einsum("qcj,pcjd->pqd", self._weights(columns), stitched_rows)
        both = torch.cat([features[:1], local.reshape(1, self.grid**2, -1)], dim=-1)
        return self.vision.proj_mlp(both)

    def _weights(self, count: int) -> Tensor:
        """(G, count, G): how much of each line of each of `count` tiles in a row goes into each pooled line."""
        window = self.grid - 2 * self.margin
        pooled = torch.arange(self.grid)[:, None, None]
        tile = torch.arange(count)[None, :, None]
        line = torch.arange(self.grid)[None, None, :]
        # A tile loses its margin on the sides that touch a neighbour.
        kept = ((tile == 0) | (line >= self.margin)) & ((tile == count - 1) | (line < self.grid - self.margin))
        place, length = tile * window + line, count * window + 2 * self.margin
        start, end = pooled * length // self.grid, ((pooled + 1) * length + self.grid - 1) // self.grid
        return (kept & (place >= start) & (place < end)).float() / (end - start).float()


def random_crops(side: int, rows: int, columns: int) -> dict[str, Tensor]:
    """Inputs of a tiling to trace and compare on."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    shapes = {"whole": (1, 3, side, side), "tiles": (rows, columns, 3, side, side)}
    return {
        name: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for name, shape in shapes.items()
    }
