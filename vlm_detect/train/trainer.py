"""The Trainer: transformers' own, with this project's order of units, loss and validation in three overrides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.base import VLM
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import EpochSampler, Units
from vlm_detect.train.failures import told_in_one_line
from vlm_detect.train.features import Features
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.mixture import Mixture
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.progress import Counts, Progress
from vlm_detect.train.termination import SaveOnTermination
from vlm_detect.train.validation import ValidationSet, scores_of


class DetectorTrainer(Trainer):
    """Finetunes a VLM on units of questions and chooses the best checkpoint by verdicts on the validation split.

    Args:
        vlm: the family adapter; its model is what is trained (wrapped by peft or not).
        args: the Trainer's arguments.
        units: the training set.
        validation: what is scored after each epoch, or None.
        pack: put all questions of an image behind one image prefix.
        row_tokens: put several images into a row of at most so many tokens; None: one image a row.
        features: cached embeddings of the training images, in place of the tower.
    """

    control: TrainerControl

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
    ) -> None:
        self.vlm = vlm
        self.validation = validation
        self.counts = Counts()
        self.sampler = EpochSampler(len(units), args.seed)
        super().__init__(
            model=vlm.model,
            args=args,
            data_collator=Collator(
                vlm,
                pack=pack,
                row_tokens=row_tokens,
                features=features,
                max_length=vlm.model.config.get_text_config().max_position_embeddings,
            ),
            train_dataset=units,
            # The Trainer wants to see something here; `evaluate` does not use it.
            eval_dataset=units if validation is not None else None,
            processing_class=vlm.processor,
            callbacks=[FollowEpochs(self.sampler)],
        )
        # `compute_loss` divides by the number of answer tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        for callback in (ProgressCallback, PrinterCallback):  # whichever --disable_tqdm chose
            self.remove_callback(callback)
        self.add_callback(Progress(self.counts))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.termination = SaveOnTermination()
        self.add_callback(self.termination)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        if isinstance(model, FSDPModule):
            loss = self._sharded_loss(model)(inputs, num_items_in_batch)
        else:
            loss = answer_loss(self.vlm, model, inputs, num_items_in_batch)
        self.counts.add(inputs)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean of gradients over processes
        if not torch.isfinite(loss.detach()):
            raise UserError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}: the run is stopped and its last "
                "checkpoint is intact; try a lower --learning_rate, or --bf16 in place of --fp16"
            )
        return loss

    def _sharded_loss(self, model: Any) -> Callable[..., torch.Tensor]:
        """`answer_loss` as a forward of the FSDP2 root: the tower, the embeddings and the head run outside of the
        model's own forward, and find their weights gathered."""
        if "answer_loss" not in vars(model):
            model.answer_loss = lambda batch, count: answer_loss(self.vlm, model.forward, batch, count)
            register_fsdp_forward_method(model, "answer_loss")
        return model.answer_loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; ended by SIGTERM it raises KeyboardInterrupt, a checkpoint having been saved."""
        with told_in_one_line(self):
            output = super().train(*args, **kwargs)
        if self.termination.received:
            raise KeyboardInterrupt
        return output

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation images, each process its share, and log the metrics."""
        if self.validation is None:
            return {}
        started = time.perf_counter()
        odds = self.validation_odds()
        metrics = {f"{metric_key_prefix}_{name}": v for name, v in scores_of(odds, self.validation.generated).items()}
        metrics[f"{metric_key_prefix}_images"] = len(odds)
        metrics[f"{metric_key_prefix}_seconds"] = round(time.perf_counter() - started, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter and the processor. (Told nothing about embeddings, peft asks the Hub for the base's config.)"""
        folder = output_dir or self.args.output_dir
        self.vlm.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        Path(folder, "README.md").unlink(missing_ok=True)  # peft's blank form; the recipe writes the card at the end
        self.vlm.processor.save_pretrained(folder)

    def validation_odds(self) -> np.ndarray:
        """Log-odds of "generated" of every validation image, in the set's order: (N,)."""
        assert self.validation is not None
        mine = range(self.args.process_index, len(self.validation), self.args.world_size)
        model: nn.Module = self.vlm.model
        if isinstance(model, FSDPModule):
            model.unshard()  # what belongs to no layer, and is read before the model's own forward
        training = model.training
        model.eval()
        engine = Engine(self.vlm, batch_images=self.args.eval_batch_size, cache_bytes=0)  # every image is seen once
        found: list[tuple[int, float]] = []
        for start in range(0, len(mine), self.args.eval_batch_size):
            indices = mine[start : start + self.args.eval_batch_size]
            images = [self.validation.images[index].open() for index in indices]
            found += zip(indices, log_odds(engine, images), strict=True)
        model.train(training)
        return np.array([odds for _, odds in sorted(gather_object(found))])


class FollowsEpochs(Protocol):
    """A sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class FollowEpochs(TrainerCallback):
    """Tells the sampler the epoch. (accelerate's own relay does not reach through a resumed or sharded sampler.)"""

    def __init__(self, sampler: FollowsEpochs) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))  # a sum of fractions of an epoch may fall short of it
