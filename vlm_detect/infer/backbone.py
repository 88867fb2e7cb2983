"""Any vision model of transformers as the source of a head's features, in place of the run's own tower.

    backbone = Backbone.load("facebook/dinov3-vitb16-pretrain-lvd1689m")     # a folder or Hub id
    backbone.pooled(images)              # (N, 2 D) float32: mean and standard deviation over an image's patches

Class and register tokens are left out where the model says how large its patches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, ViTImageProcessorPil
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vlm_detect.errors import UserError, first_line
from vlm_detect.infer.batch_size import BatchSize
from vlm_detect.machine import best_device
from vlm_detect.models.untrusted import load_untrusted
from vlm_detect.quiet import no_bars_in_logs

_BATCH = 16
# Their own image processors are torchvision's alone; these resize and normalise as they do, by Pillow.
_PROCESSORS = {"dinov3_vit": ViTImageProcessorPil, "dinov3_convnext": ViTImageProcessorPil}


@dataclass(frozen=True)
class Backbone:
    """A frozen vision model and the image processor of its folder."""

    model: Any
    processor: Any
    name: str

    @classmethod
    def load(cls, path_or_id: str, device: torch.device | str | None = None) -> Backbone:
        """Of a model of images and texts, its vision tower; `UserError` for anything that reads no images."""
        try:
            with no_bars_in_logs("transformers"):
                config = load_untrusted(AutoConfig, path_or_id)
                config = getattr(config, "vision_config", config)
                model = load_untrusted(AutoModel, path_or_id, config=config)
                if (plain := _PROCESSORS.get(config.model_type)) is not None:
                    processor = load_untrusted(plain, path_or_id)
                else:
                    processor = load_untrusted(AutoImageProcessor, path_or_id, backend="pil")
        except (ImportError, OSError, ValueError, KeyError) as error:
            raise UserError(
                f"--backbone {path_or_id}: no vision model of transformers ({first_line(error)})"
            ) from error
        return cls(model.eval().to(device or best_device()), processor, path_or_id)

    @torch.inference_mode()
    def pooled(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features (N, F) of images."""
        return torch.stack(BatchSize(_BATCH).run(images, self._pool)).numpy()

    def _pool(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """The features (F,) of each image of a batch."""
        inputs = self.processor([image.convert("RGB") for image in images], return_tensors="pt").to(self.model.device)
        places, there = self._places(self.model(**inputs).last_hidden_state, inputs)
        count = there.sum(1, keepdim=True)
        mean = (places * there[..., None]).sum(1) / count
        variance = ((places - mean[:, None]) ** 2 * there[..., None]).sum(1) / count
        return list(torch.cat([mean, variance.sqrt()], dim=1).cpu())

    def _places(self, hidden: torch.Tensor, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The patches (B, N, D) of what the model gives, and which of them are of the image (B, N)."""
        if hidden.ndim == 4:  # the feature maps of a convolutional network
            hidden = hidden.flatten(2).transpose(1, 2)
        elif (patch := getattr(self.model.config, "patch_size", None)) and inputs["pixel_values"].ndim == 4:
            height, width = (side // int(patch) for side in inputs["pixel_values"].shape[-2:])
            hidden = hidden[:, -height * width :]
        there = inputs.get("pixel_attention_mask")
        hidden = hidden.float()
        return hidden, (torch.ones(hidden.shape[:2], device=hidden.device) if there is None else there.float())
