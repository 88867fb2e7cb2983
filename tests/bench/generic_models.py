"""Batches and forwards of transformers' image-text models on fake tensors, for `memory.py`.

What their own code reads of values is known here: the grid of an image's patches, and that no crop is empty. The rest
is transformers' own.
"""

from __future__ import annotations

from typing import Any

import checkout  # noqa: F401
import torch
from PIL import Image
from torch.utils._python_dispatch import _disable_current_modes
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl
from transformers.models.smolvlm import modeling_smolvlm as smolvlm
from transformers.utils import import_utils

from vlm_detect.models.base import MEASURED, VLM

_GRIDS: list[Any] = []  # of the batch's images, where values are
_HELPERS = (
    "get_vision_interpolation_indices_and_weights",
    "get_vision_position_ids",
    "get_vision_attention_seqlens",
)


def one_prepared(vlm: VLM) -> dict[str, Any]:
    """The more expensive image of those that an estimate measures, prepared, with its values."""
    with _disable_current_modes():
        return max(
            (vlm.prepare([Image.new("RGB", size)])[0] for size in MEASURED), key=lambda made: made["input_ids"].shape[1]
        )


def fake_prepared(vlm: VLM, images: int) -> list[dict[str, Any]]:
    one = one_prepared(vlm)
    with _disable_current_modes():
        _GRIDS[:] = [one["image_grid_thw"].repeat(images, 1)] if "image_grid_thw" in one else []
    return [fakes(one) for _ in range(images)]


def fakes(columns: dict[str, Any]) -> dict[str, Any]:
    """As `columns`, with shapes alone."""
    return {
        name: torch.empty(part.shape, dtype=part.dtype) if isinstance(part, torch.Tensor) else part
        for name, part in columns.items()
    }


def changes_of_models() -> list[tuple[Any, str, Any]]:
    """What to replace, by which name, and by what."""
    return [
        (import_utils.os, "environ", {**import_utils.os.environ, "TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}),
        (qwen3_vl, "is_flash_attention_requested", lambda config: True),  # all images in one call
        (qwen3_vl, "get_max_seqlen", lambda *args, **options: 0),
        (qwen3_vl.Qwen3VLModel, "get_image_features", _qwen_features),
        (qwen3_vl.Qwen3VLTextModel, "_deepstack_process", _add_to_images),
        (smolvlm.SmolVLMModel, "get_image_features", _smolvlm_features),
        (smolvlm, "create_bidirectional_mask", lambda **options: None),  # which a GPU skips where no patch is masked
        *((qwen3_vl, name, _with_values(getattr(qwen3_vl, name))) for name in _HELPERS),
    ]


def _with_values(helper: Any) -> Any:
    """A function of the grid, called with its values."""

    def made(grid_thw: torch.Tensor, *args: Any, **options: Any) -> Any:
        with _disable_current_modes():
            found = helper(_GRIDS[0], *args, **options)
        parts = tuple(
            torch.empty(part.shape, dtype=part.dtype) if isinstance(part, torch.Tensor) else part
            for part in (found if isinstance(found, tuple) else (found,))
        )
        return parts if isinstance(found, tuple) else parts[0]

    return made


def _qwen_features(self: Any, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **options: Any) -> Any:
    images = len(image_grid_thw)
    outputs = self.visual(pixel_values.type(self.visual.dtype), grid_thw=image_grid_thw, return_dict=True)
    outputs.pooler_output = outputs.pooler_output.chunk(images)
    outputs.deepstack_features = [feature.chunk(images) for feature in outputs.deepstack_features]
    return outputs


def _add_to_images(self: Any, hidden: torch.Tensor, places: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    hidden = hidden.clone()
    flat = hidden.flatten(0, 1)
    flat[: len(embeds)] = flat[: len(embeds)] + embeds.to(hidden.dtype)
    return hidden


def _smolvlm_features(self: Any, pixel_values: torch.Tensor, pixel_attention_mask: Any = None, **options: Any) -> Any:
    images = len(pixel_values)
    pixels = pixel_values.to(self.dtype).flatten(0, 1)
    pixels = pixels.clone()  # of the crops that are not empty
    side, patch = pixels.shape[-1], self.config.vision_config.patch_size
    patches = torch.empty(len(pixels), side // patch, side // patch, dtype=torch.bool)
    outputs = self.vision_model(pixel_values=pixels, patch_attention_mask=patches, return_dict=True)
    features = self.connector(outputs.last_hidden_state)
    outputs.pooler_output = [one.flatten(0, 1) for one in features.chunk(images)]
    return outputs
