"""The image encoder: crops through a SigLIP-like tower, tiles stitched and pooled, global and local view projected.

    pixel_values (B, K, 3, C, C) --normalise--tower--> (crops, G*G, D) --stitch, pool--> local (B, G*G, D)
      --concat [global, local], projection--> image embeddings (B, G*G, D_text)

G = crop_size // patch_size. Source: vikhyat/moondream `vision.py`, `image_crops.py::reconstruct_from_crops`. There the
grid is `enc_n_layers`, which happens to be 27 as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_detect.models.attention import attention_of
from vlm_detect.models.moondream.configuration import MoondreamVisionConfig
from vlm_detect.models.moondream.image_processing import pixel_table
from vlm_detect.models.moondream.layers import MoondreamMLP, MoondreamPreTrainedModel, attend


class MoondreamVisionAttention(nn.Module):
    def __init__(self, config: MoondreamVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, H, G*G, head_dim)
        output, _ = attend(
            self,
            attention_of(self.config),
            query,
            key,
            value,
            None,
            scaling=self.head_dim**-0.5,
            is_causal=False,
            **kwargs,
        )
        return self.proj(output.reshape(batch, length, width))


class MoondreamVisionBlock(GradientCheckpointingLayer):
    def __init__(self, config: MoondreamVisionConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = MoondreamVisionAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MoondreamMLP(config.hidden_size, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.ln1(hidden_states), **kwargs)
        return hidden_states + self.mlp(self.ln2(hidden_states))


class MoondreamVision(MoondreamPreTrainedModel):
    config_class = MoondreamVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: MoondreamVisionConfig) -> None:
        super().__init__(config)
        self.patch_emb = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.num_image_tokens, config.hidden_size))
        self.blocks = nn.ModuleList(MoondreamVisionBlock(config) for _ in range(config.num_hidden_layers))
        self.post_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.proj_mlp = MoondreamMLP(2 * config.hidden_size, config.projection_hidden_size, config.projection_size)
        self.pixel_dtype = "bfloat16"  # in which pixels are normalised, whatever the tower's
        self._tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}  # not a buffer: see `rotary_table`
        self.post_init()

    def normalize(self, levels: torch.Tensor) -> torch.Tensor:
        """Grey levels, uint8, to values in the tower's dtype: exactly those of `MoondreamImageProcessor`."""
        key = levels.device, self.pos_emb.dtype
        if key not in self._tables:
            table = pixel_table(getattr(torch, self.pixel_dtype))
            with torch.inference_mode(mode=False):  # training takes it too
                self._tables[key] = torch.from_numpy(table).to(*key)
        return self._tables[key].index_select(0, levels.flatten().int()).view(levels.shape)

    def encode_crops(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (N, 3, C, C), normalised, to features (N, G*G, D)."""
        count, channels = crops.shape[:2]
        grid, patch = self.config.grid_size, self.config.patch_size
        patches = crops.view(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        hidden_states = self.patch_emb(patches.reshape(count, grid * grid, -1)) + self.pos_emb
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.post_ln(hidden_states)

    def stitch(self, tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Tile features (rows*columns, G*G, D) to one map (rows*W + 2m, columns*W + 2m, D), W = G - 2m.

        Each tile loses its margin m on the sides that touch a neighbour and keeps it on the outer border.
        """
        grid, margin = self.config.grid_size, self.config.overlap_margin
        tiles = tiles.view(rows, columns, grid, grid, -1)

        def kept(index: int, count: int) -> slice:
            return slice(0 if index == 0 else margin, grid if index == count - 1 else grid - margin)

        strips = [
            torch.cat([tiles[row, column, kept(row, rows), kept(column, columns)] for column in range(columns)], dim=1)
            for row in range(rows)
        ]
        return torch.cat(strips, dim=0)

    def pool(self, stitched: torch.Tensor) -> torch.Tensor:
        """A stitched map (H, W, D) to (G*G, D) by adaptive average pooling."""
        grid = self.config.grid_size
        pooled = nn.functional.adaptive_avg_pool2d(stitched.permute(2, 0, 1), output_size=(grid, grid))
        return pooled.permute(1, 2, 0).reshape(grid * grid, -1)

    def forward(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], tilings: torch.Tensor | Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Images as `MoondreamImageProcessor` gives them to embeddings (B, G*G, D_text). One tower pass for all.

        Images in a list have (K, 3, C, C) each, K their own number of crops. A list of tilings, unlike a tensor on a
        GPU, is read without waiting.
        """
        layout = tilings.tolist() if isinstance(tilings, torch.Tensor) else tilings
        # An image that fits one crop comes with it twice, as the whole and as its tile: one reading does for both.
        counts = [1 + tiles if (tiles := rows * columns) > 1 else 1 for rows, columns in layout]
        crops = torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])
        crops = self.normalize(crops) if crops.dtype == torch.uint8 else crops.to(self.pos_emb.dtype)
        views = self.encode_crops(crops).split(counts)
        whole = torch.stack([view[0] for view in views])
        local = torch.stack(
            [
                self.pool(self.stitch(view[-rows * columns :], rows, columns))
                for view, (rows, columns) in zip(views, layout, strict=True)
            ]
        )
        return self.proj_mlp(torch.cat([whole, local], dim=-1))
