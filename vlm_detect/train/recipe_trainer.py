"""Shared by the Trainers of VLMs and CNNs: their own data order, plain progress, one-line errors.

transformers' Trainer does the rest. Subclasses implement `compute_loss` and `evaluate`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler
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

from vlm_detect.config import make_readable
from vlm_detect.errors import UserError
from vlm_detect.train.checkpoints import FindBest, LoadWhole, WriteChecksums
from vlm_detect.train.failures import as_user_errors, refused_flags
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.progress import Progress
from vlm_detect.train.termination import SaveOnTermination


class EpochOrder(Protocol):
    """A sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class RecipeTrainer(Trainer):
    """A Trainer that follows `sampler`, prints `progress`, and fails with a one-line error.

    `options` go to the Trainer. `memory_remedies` are the flags, other than a smaller batch, that save memory here.
    """

    control: TrainerControl
    memory_remedies: tuple[str, ...] = ()

    def __init__(self, args: TrainOptions, sampler: EpochOrder, progress: Progress, **options: Any) -> None:
        self.sampler = sampler
        self.progress = progress
        self.counts = progress.counts
        self.loss_sum: torch.Tensor | float = 0.0  # of all micro-steps: non-finite once one was
        with refused_flags(args):  # transformers reports them itself
            super().__init__(args=args, callbacks=[FollowEpochs(sampler), LeaveFrozen()], **options)
        for callback in (ProgressCallback, PrinterCallback):  # depends on --disable_tqdm
            self.remove_callback(callback)
        self.add_callback(progress)
        if args.early_stopping_patience is not None:
            self.add_callback(Patience(args.early_stopping_patience))
        for sealing in (FindBest(), WriteChecksums()):
            self.add_callback(sealing)
        self.load_whole = LoadWhole()
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # which load what is sharded, without peft
            self.add_callback(self.load_whole)
        # Pinned batches are copied while the device computes.
        self.accelerator.dataloader_config.non_blocking = args.dataloader_pin_memory
        self.termination = SaveOnTermination()
        self.add_callback(self.termination)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return self.sampler  # type: ignore[return-value]

    def create_optimizer(self, *args: Any, **options: Any) -> torch.optim.Optimizer:
        with refused_flags(self.args, "optim", "optim_args"):
            return super().create_optimizer(*args, **options)

    def create_scheduler(self, *args: Any, **options: Any) -> Any:
        with refused_flags(self.args, "lr_scheduler_type", "lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.check_loss(float(self.loss_sum))
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            make_readable(*Path(output_dir or str(self.args.output_dir)).glob("*.safetensors"))

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        try:
            super().init_hf_repo(*args, **options)
        except Exception as error:  # the Hub client raises the errors of its HTTP library, which varies
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).name
            raise UserError(f"--push_to_hub: cannot create the repository {name} on the Hub: {error}") from error

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """As the Trainer's; on SIGTERM it saves a checkpoint and raises KeyboardInterrupt."""
        self.load_whole.resumed = resume_from_checkpoint
        with as_user_errors(self, self.memory_remedies):
            output = super().train(resume_from_checkpoint, **kwargs)
        if self.termination.received:
            raise KeyboardInterrupt
        return output

    def note_loss(self, loss: torch.Tensor) -> None:
        """Remember the loss of a micro-step until it is logged or a checkpoint is written: both then raise UserError if
        it was non-finite. To look at it at once would wait for the device."""
        self.loss_sum = self.loss_sum + loss.detach()

    def check_loss(self, loss: float) -> None:
        """Raise UserError if the loss is non-finite."""
        if not math.isfinite(loss):
            which = "step" if self.state.logging_steps == 1 else "the steps up to"
            raise UserError(
                f"the loss of {which} {self.state.global_step} is {loss}: the run is stopped and its last checkpoint "
                "is intact; try a lower --learning_rate, or --bf16 in place of --fp16"
            )

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs:
            self.check_loss(logs["loss"])
        super().log(logs, *args, **options)

    def publish_scores(self, scores: Mapping[str, float], images: int, started: float, prefix: str) -> dict[str, float]:
        """Log validation scores, which select the best checkpoint; `started` is a time of `time.perf_counter`."""
        metrics = {f"{prefix}_{name}": value for name, value in scores.items()}
        metrics |= {f"{prefix}_images": images, f"{prefix}_seconds": round(time.perf_counter() - started, 3)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Patience(EarlyStoppingCallback):
    """Early stopping that keeps its patience count when resumed. (transformers resets it.)"""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        for name, value in saved.get("attributes", {}).items():
            setattr(self, name, value)


class LeaveFrozen(TrainerCallback):
    """Checkpointed layers ask no gradient of their inputs.

    transformers makes the embeddings of every part ask for one, a frozen tower's too, which would then be traced, kept
    and run backward. Only reentrant checkpointing needs that.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        given = vars(args)
        for name in ("activation_checkpointing", "gradient_checkpointing"):  # from transformers 5.20 on, and before
            if given.get(name) and not (given.get(f"{name}_kwargs") or {}).get("use_reentrant"):
                model.disable_input_require_grads()
                return


class FollowEpochs(TrainerCallback):
    """Passes the epoch to the sampler. (accelerate's does not reach through a resumed or sharded sampler.)"""

    def __init__(self, sampler: EpochOrder) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(
            int((state.epoch or 0) + 1e-6)
        )  # a sum of fractions of an epoch may be slightly too small
