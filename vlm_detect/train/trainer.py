"""The Trainer: transformers' Trainer with this project's data order, loss and validation in three overrides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_detect.models.base import VLM
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import EpochSampler, Units
from vlm_detect.train.features import Features
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.mixture import Mixture
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.progress import Counts, Progress
from vlm_detect.train.row_shapes import RowLengths, RowShapes
from vlm_detect.train.usable import context_of
from vlm_detect.train.validation import ValidationSet, scores_of
from vlm_detect.train.vlm_trainer import VLMTrainer


class DetectorTrainer(VLMTrainer):
    """Finetunes a VLM on units of questions and selects the best checkpoint by its verdicts on the validation split.

    Args:
        vlm: the family wrapper; its model is trained (wrapped by PEFT or not).
        args: the Trainer's arguments.
        units: the training set.
        validation: the images scored after each epoch, or None.
        pack: pack all questions of an image after one image prefix.
        row_tokens: pack several images into a row of at most this many tokens; None: one image per row.
        features: cached embeddings of the training images, which replace the tower.
        loss_per: what counts equally in the loss, "token" or "answer".
        compiled: the decoder's layers are compiled: rows have few shapes, and validation is not compiled.
    """

    def __init__(
        self,
        vlm: VLM,
        args: TrainOptions,
        units: Units | Mixture,
        validation: ValidationSet | None = None,
        *,
        pack: bool = True,
        row_tokens: int | None = None,
        features: Features | None = None,
        loss_per: str = "token",
        compiled: bool = False,
    ) -> None:
        shapes = RowShapes(compiled=compiled)
        with shapes.uncompiled():  # whether the model packs is measured on a few rows
            collator = Collator(
                vlm,
                pack=pack,
                row_tokens=row_tokens,
                features=features,
                max_length=context_of(vlm),
                loss_per=loss_per,
                lengths=RowLengths.of(args.device, compiled=compiled),
            )
        super().__init__(
            vlm,
            args,
            EpochSampler(len(units), args.seed),
            Progress(Counts()),
            validation=validation,
            shapes=shapes,
            data_collator=collator,
            train_dataset=units,
            # The Trainer requires something here; `evaluate` does not use it.
            eval_dataset=units if validation is not None else None,
        )
        # `compute_loss` divides by the number of answer tokens of the accumulated batch.
        self.model_accepts_loss_kwargs = True
        if self.is_fsdp_enabled:
            self._shard_layers_that_are_there(self.accelerator.state.fsdp_plugin)

    def _shard_layers_that_are_there(self, plugin: Any) -> None:
        """In composite models accelerate looks for layers of parts that are absent, such as SigLIP's text model."""
        model: Any = self.vlm.model
        if plugin.transformer_cls_names_to_wrap is None:
            layers = {
                type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
            }
            plugin.transformer_cls_names_to_wrap = sorted(layers)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        # accelerate's autocast covers the model's forward alone; the tower and the vocabulary head run outside of it.
        with self.accelerator.autocast():
            if isinstance(model, FSDPModule):
                loss = self._sharded_loss(model)(inputs, num_items_in_batch)
            else:
                loss = self._answer_loss(model, inputs, num_items_in_batch)
        self.counts.add(inputs)
        self.shapes.add(inputs)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over processes
        self.note_loss(loss)
        return loss

    def _answer_loss(self, model: Callable[..., Any], batch: dict[str, Any], count: Any) -> torch.Tensor:
        return answer_loss(self.vlm, model, batch, count, smoothing=self.args.label_smoothing_factor)

    def _sharded_loss(self, model: Any) -> Callable[..., torch.Tensor]:
        """Run `answer_loss` as a forward of the FSDP2 root: the tower, the embeddings and the head run outside of the
        model's forward, and need their weights gathered."""
        if "answer_loss" not in vars(model):
            model.answer_loss = lambda batch, count: self._answer_loss(model.forward, batch, count)
            register_fsdp_forward_method(model, "answer_loss")
        return model.answer_loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation images, each process its share, and log the metrics."""
        if self.validation is None:
            return {}
        started = time.perf_counter()
        odds = self.validation_odds()
        scores = scores_of(odds, self.validation.generated)
        return self.publish_scores(scores, len(odds), started, metric_key_prefix)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the adapter, the processor and the family's own files.

        (Without `save_embedding_layers`, PEFT fetches the base's config from the Hub.)
        """
        if (
            not self.args.should_save
        ):  # transformers 5.23 calls this in every process, and all would write the same files
            return
        folder = output_dir or self.args.output_dir
        # The Trainer loads checkpoints by module names; final files have the names of the family's files.
        published = {"save_original_format": folder == self.args.output_dir}
        self.vlm.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False, **published)
        Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's template; the recipe writes the card at the end
        self.vlm.processor.save_pretrained(folder)
        self.vlm.save_extra(folder)
