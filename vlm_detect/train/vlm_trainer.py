"""Shared by the Trainers of VLMs: precision, the shapes of rows, and the verdicts that validate."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from vlm_detect.models.base import VLM
from vlm_detect.train.lora import inputs_left_to_autocast
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.progress import Progress
from vlm_detect.train.recipe_trainer import EpochOrder, RecipeTrainer
from vlm_detect.train.row_shapes import RowShapes
from vlm_detect.train.validation import ValidationSet, validation_odds


class VLMTrainer(RecipeTrainer):
    """A recipe's Trainer for a VLM.

    Args:
        vlm: the family wrapper; its model is trained (wrapped by PEFT or not).
        args, sampler, progress, options: see `RecipeTrainer`.
        validation: the images scored after each epoch, or None.
        shapes: of the rows that are trained on; what validates is not compiled.
    """

    memory_remedies = ("--gradient_checkpointing True", "--quantize nf4")

    def __init__(
        self,
        vlm: VLM,
        args: TrainOptions,
        sampler: EpochOrder,
        progress: Progress,
        *,
        validation: ValidationSet | None,
        shapes: RowShapes,
        **options: Any,
    ) -> None:
        self.vlm = vlm
        self.validation = validation
        self.shapes = shapes
        if validation is not None:
            with shapes.uncompiled():  # measured while the model is neither sharded nor wrapped in autocast
                _ = vlm.supports_prefix_cache
        super().__init__(args, sampler, progress, model=vlm.model, processing_class=vlm.processor, **options)
        self.add_callback(self.shapes)

    def training_step(self, model: nn.Module, *args: Any, **options: Any) -> torch.Tensor:
        autocasts = self.accelerator.mixed_precision != "no"
        with inputs_left_to_autocast(self.vlm.model) if autocasts else nullcontext():
            return super().training_step(model, *args, **options)

    def validation_odds(self) -> np.ndarray:
        """Log-odds of "generated" of every validation image, in the set's order: (N,)."""
        assert self.validation is not None
        with self.shapes.uncompiled():
            return validation_odds(self.vlm, self.validation, self.args)
