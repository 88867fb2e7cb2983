"""The options of a training run but for the LoRA and the questions: model, data, and the Trainer's flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from huggingface_hub import get_token
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError
from vlm_detect.train.augment import AUGMENTATIONS

DEFAULT_DATA = "data/pairs"


@dataclass(frozen=True)
class ModelOptions:
    """The model to finetune."""

    model: str = field(
        default="auto",
        metadata={
            "help": "Hub id, folder, `nano` (embedded; rehearses the pipeline on a CPU), or `auto`: the real model "
            "where it fits the accelerator's free memory, else nano."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub id. Default: a pinned one."})
    dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU."}
    )
    quantize: str | None = field(
        default=None,
        metadata={"help": "nf4 or int8: hold the language model's frozen weights so (QLoRA; needs bitsandbytes)."},
    )
    attention: str | None = field(
        default=None,
        metadata={"help": "sdpa (default), eager, flash_attention_2, or flex_attention (a GPU; skips masked blocks)."},
    )
    tune: str = field(
        default="lora", metadata={"help": "lora, or full: every weight of the language model, the tower frozen."}
    )
    compile_layers: str | None = field(
        default=None,
        metadata={"help": "Compile each decoder layer with this torch backend, for example inductor. Default: not."},
    )


@dataclass(frozen=True)
class DataOptions:
    """The dataset to learn from: pairs, single images, or conversations."""

    data: str = field(
        default=DEFAULT_DATA,
        metadata={
            "help": "A pair dataset or image dataset (folder or Hub id), or a JSON file of conversations in LLaVA's "
            "form. Where the default does not exist, pairs are made from the bundled photos."
        },
    )
    validation: str | None = field(
        default=None,
        metadata={
            "help": "Score the validation split of this dataset. Default: that of --data, and of conversations a fifth."
        },
    )
    mix: list[str] = field(
        default_factory=list, metadata={"help": "More datasets to learn from; --data alone is validated on."}
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={"help": "With --mix: the parts of an epoch, first that of --data. Default: every unit once."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most this many rows of the training split."})
    validation_limit: int | None = field(
        default=1000, metadata={"help": "Score at most this many validation images after each epoch."}
    )
    pack: bool = field(
        default=True,
        metadata={"help": "Put all questions of an image behind one image prefix (the same loss, faster)."},
    )
    pack_tokens: int | None = field(
        default=None,
        metadata={
            "help": "With --pack, put several images into a row of at most so many tokens. Default: one image a row."
        },
    )
    cache_features: bool = field(
        default=False,
        metadata={"help": "Compute the frozen tower's image embeddings once and train from them (the same losses)."},
    )
    features_dir: str = field(default="runs/features", metadata={"help": "Where cached image embeddings are kept."})
    augment: list[str] = field(
        default_factory=list,
        metadata={"help": f"What may happen to photo and twin alike, drawn in each epoch: {', '.join(AUGMENTATIONS)}."},
    )
    cached_views: int = field(
        default=4,
        metadata={"help": "With --cache_features and --augment: how many drawn views of every image are cached."},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads on a CPU. Default: all cores, shared by the processes (accelerate alone sets one)."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "pack_tokens", "cached_views", "cpu_threads")
        check_at_least(self, 2, "validation_limit")
        if self.weights and not self.mix:
            raise UserError("--weights are parts of an epoch: name the other datasets by --mix, or leave them out")


@dataclass
class TrainOptions(TrainingArguments):
    """transformers' TrainingArguments, every flag of them, with other defaults.

    A unit of `per_device_train_batch_size` is two images: an unaltered one and its counterpart.
    """

    output_dir: str | None = field(default=None, metadata={"help": "The run directory. Default: runs/RECIPE."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Units of two images (a photo and its twin) in a step, per device."}
    )
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images scored at once, per device."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: SchedulerType = field(
        default=SchedulerType.COSINE, metadata={"help": "How the learning rate falls."}
    )
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or below 1 a part of all steps."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs."})
    logging_steps: float = field(default=1, metadata={"help": "Log the loss every so many steps."})
    # Zeros in place of a NaN would hide a run that has failed.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave NaN and infinite losses out of the log."}
    )
    eval_strategy: IntervalStrategy = field(
        default=IntervalStrategy.EPOCH, metadata={"help": "When to score the validation split."}
    )
    save_strategy: SaveStrategy = field(default=SaveStrategy.EPOCH, metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; the best is always kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default="score",
        metadata={"help": "score (mean of AUROC and balanced accuracy), auroc, balanced_accuracy, log_loss."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a better score. Default: never."}
    )
    # Every adapter takes part in every step, and looking for those that do not costs time.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See torch's DDP."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  the order that HfArgumentParser needs
        default_factory=lambda: "tensorboard" if find_spec("tensorboard") else "none",
        metadata={"help": "tensorboard (the default where it is installed), wandb, ..., or none."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory. Default: where CUDA is."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: examples have no columns."})
    seed: int = field(default=0, metadata={"help": "Seed of every draw."})
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "Train once for each of these, in folders of --output_dir; mean and spread in seeds.json."},
    )

    def __post_init__(self) -> None:
        check_at_least(
            self,
            1,
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "early_stopping_patience",
        )
        check_at_least(self, 0, "learning_rate", "weight_decay", "dataloader_num_workers")
        if self.num_train_epochs <= 0:
            raise UserError(f"--num_train_epochs {self.num_train_epochs:g}: give more than 0")
        if not 0 <= self.label_smoothing_factor < 1:
            raise UserError(f"--label_smoothing_factor {self.label_smoothing_factor}: give a part from 0 to below 1")
        if self.train_sampling_strategy != "random":
            raise UserError(
                f"--train_sampling_strategy {self.train_sampling_strategy}: an epoch's units come in an order of its "
                "own, in which both classes are in every batch; leave it out"
            )
        flags: dict[str, Any] = self.__dict__
        for name, value in flags.items():
            if isinstance(value, str) and value.startswith("{"):
                try:
                    json.loads(value)
                except ValueError as error:
                    raise UserError(f"--{name} {value}: not JSON ({error})") from error
        if (word := str(flags["fsdp"]).lower()) in ("true", "false"):  # transformers knows words of old alone
            flags["fsdp"] = word == "true"
        # The flag has a new name from transformers 5.20 on, which says so in a warning; both names do.
        if "activation_checkpointing" in flags and flags["activation_checkpointing"] is None:
            flags["activation_checkpointing"] = flags["gradient_checkpointing"]
        if self.push_to_hub and not (self.hub_token or get_token()):
            raise UserError(
                "--push_to_hub needs a token of the Hugging Face Hub: run `hf auth login`, or give --hub_token"
            )
        super().__post_init__()
