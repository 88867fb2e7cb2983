"""What a training run can be told: the model, the data, the questions, the LoRA, and the Trainer's flags.

Nothing heavy is imported here, so that a recipe lists its flags at once; `arguments.py` has the whole of the Trainer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlm_detect.config import check_at_least, check_known
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS, training_kinds

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Base
else:
    _Base = object

DEFAULT_DATA = "data/pairs"
# In the order in which they are applied: JPEG behind everything that a camera knows.
AUGMENTATIONS = ("flip", "rotate", "crop", "rescale", "blur", "noise", "jpeg", "invert_saturate", "typographic")
LORA_WORDS = ("attention", "mlp", "all-linear", "vision", "head")
SCORES = ("score", "auroc", "balanced_accuracy", "log_loss")  # of the validation split


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
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU."}
    )
    quantize: Literal["nf4", "int8"] | None = field(
        default=None,
        metadata={"help": "nf4 or int8: hold the language model's frozen weights so (QLoRA; needs bitsandbytes)."},
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = field(
        default=None,
        metadata={
            "help": "sdpa (default), eager, flash_attention_2 (the tower; decoders have masks), or "
            "flex_attention (a GPU; skips masked blocks)."
        },
    )
    tune: Literal["lora", "full"] = field(
        default="lora", metadata={"help": "lora, or full: every weight of the language model, the tower frozen."}
    )
    compile_layers: str | None = field(
        default=None,
        metadata={"help": "Compile each decoder layer with this torch backend, for example inductor. Default: not."},
    )

    def __post_init__(self) -> None:
        if self.quantize and self.tune == "full":
            raise UserError(f"--tune full cannot train weights held in {self.quantize}: leave out --quantize")


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
        check_known(self, AUGMENTATIONS, "augment")
        if self.weights and not self.mix:
            raise UserError("--weights are parts of an epoch: name the other datasets by --mix, or leave them out")
        if self.weights and (len(self.weights) != 1 + len(self.mix) or min(self.weights) <= 0):
            given = " ".join(f"{weight:g}" for weight in self.weights)
            raise UserError(f"--weights {given}: give one above 0 for each of the {1 + len(self.mix)} datasets")


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked about each image in an epoch."""

    question_kinds: list[str] = field(
        default_factory=lambda: ["yes_no"], metadata={"help": f"Kinds to draw from: {', '.join(training_kinds())}."}
    )
    questions_per_image: int = field(default=1, metadata={"help": "Questions asked about an image in an epoch."})
    shuffle_labels: bool = field(
        default=False,
        metadata={"help": "Train on labels drawn by lot: the control that a real result has to leave behind."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "questions_per_image")
        KINDS.check(*self.question_kinds, flag="--question_kinds")
        if untrained := [kind for kind in self.question_kinds if not KINDS[kind].trains]:
            raise UserError(
                f"--question_kinds {' '.join(untrained)}: asked in benchmarks only; choose from "
                f"{', '.join(training_kinds())}"
            )


@dataclass(frozen=True)
class LoraOptions:
    """The adapter. Effective weight: W + (alpha / r) B A; the two variants can be combined."""

    lora_targets: str = field(
        default="all-linear",
        metadata={
            "help": "Layers to adapt: attention, mlp, all-linear, each with +vision for the tower and connector, "
            "and +head for the vocabulary head."
        },
    )
    lora_last_layers: int | None = field(
        default=None, metadata={"help": "Adapt only the last N layers of the language model. Default: all."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale; the update is multiplied by alpha / r."})
    train_connector: bool = field(
        default=False,
        metadata={"help": "Train the connector between tower and language model in full beside the LoRA."},
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    use_rslora: bool = field(
        default=False,
        metadata={
            "help": "Scale by alpha / sqrt(r): keeps the update's size at high ranks (rsLoRA, arXiv 2312.03732)."
        },
    )
    use_dora: bool = field(
        default=False,
        metadata={"help": "Learn each output's magnitude apart from its direction (DoRA, arXiv 2402.09353); slower."},
    )

    def __post_init__(self) -> None:
        if unknown := [word for word in self.lora_targets.split("+") if word not in LORA_WORDS]:
            raise UserError(
                f"--lora_targets {self.lora_targets}: unknown {', '.join(unknown)}; choose from {', '.join(LORA_WORDS)}"
            )
        check_at_least(self, 1, "lora_r", "lora_alpha", "lora_last_layers")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: give a part from 0 to below 1")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class TrainOptions(_Base):
    """The Trainer: other defaults than transformers' TrainingArguments, of which it takes every flag.

    A unit of `per_device_train_batch_size` is two images: an unaltered one and its counterpart. What a run is given is
    a `TrainArguments`, which has the fields of both.
    """

    replaced: ClassVar[Mapping[str, str]] = {
        "evaluation_strategy": "it is --eval_strategy in transformers 5",
        "gpus": "the launcher has it: accelerate launch --num_processes N",
        "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR has it in transformers 5",
        "lr": "it is --learning_rate",
        "no_cuda": "it is --use_cpu in transformers 5",
        "overwrite_output_dir": "nothing is overwritten: give another --output_dir, or remove the folder",
        "warmup_ratio": "it is --warmup_steps in transformers 5, which below 1 is a part of all steps",
    }
    metrics: ClassVar[Sequence[str]] = SCORES  # what --metric_for_best_model may be; empty: anything

    output_dir: str | None = field(default=None, metadata={"help": "The run directory. Default: runs/RECIPE."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Units of two images (a photo and its twin) in a step, per device."}
    )
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images scored at once, per device."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or below 1 a part of all steps."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs."})
    logging_steps: float = field(default=1, metadata={"help": "Log the loss every so many steps."})
    # Zeros in place of a NaN would hide a run that has failed.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave NaN and infinite losses out of the log."}
    )
    eval_strategy: Literal["no", "steps", "epoch"] = field(
        default="epoch", metadata={"help": "When to score the validation split."}
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(
        default="epoch", metadata={"help": "When to write a checkpoint."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; the best is always kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default="score",
        metadata={"help": "score (mean of AUROC and balanced accuracy), auroc, balanced_accuracy, log_loss."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a better score. Default: never."}
    )
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] | None = field(
        default=None,
        metadata={
            "help": "Autocast of a step; the trained weights stay float32. auto: bf16 where the device computes faster "
            "in it, which on a CPU is measured. Default: what --bf16 and --fp16 say."
        },
    )
    # Every adapter takes part in every step, and looking for those that do not costs time.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See torch's DDP."})
    report_to: str | list[str] | None = field(
        default_factory=lambda: "tensorboard" if find_spec("tensorboard") else "none",
        metadata={"help": "tensorboard (the default where it is installed), wandb, ..., or none."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=_has_cuda, metadata={"help": "Pin batches in memory. Default: where CUDA is."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: examples have no columns."})
    fit_head: bool = field(
        default=True,
        metadata={
            "help": "At the end, fit a head on the tower's features of up to 4,000 training images, and weigh it "
            "against the language model on the validation images."
        },
    )
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
        if self.mixed_precision:
            self._set_precision(self.mixed_precision)
        if (word := str(flags["fsdp"]).lower()) in ("true", "false"):  # transformers knows words of old alone
            flags["fsdp"] = word == "true"
        # The flag has a new name from transformers 5.20 on, which says so in a warning; both names do.
        if "activation_checkpointing" in flags and flags["activation_checkpointing"] is None:
            flags["activation_checkpointing"] = flags["gradient_checkpointing"]
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if self.load_best_model_at_end and self.metrics and metric not in self.metrics:
            raise UserError(f"--metric_for_best_model {metric}: choose from {', '.join(self.metrics)}")
        if self.push_to_hub and not self.hub_token:
            _check_token()
        super().__post_init__()

    def _set_precision(self, name: str) -> None:
        """Put `--mixed_precision` into the flags that transformers has for it."""
        from vlm_detect.machine import best_device, computes_in_bfloat16  # late: with torch, which --help does without

        flags: dict[str, Any] = self.__dict__
        if flags["bf16"] or flags["fp16"]:
            raise UserError(f"--mixed_precision {name} and --bf16 or --fp16 say the same: give one of them")
        device = "cpu" if flags["use_cpu"] else best_device().type
        flags["bf16"] = name == "bf16" or (name == "auto" and computes_in_bfloat16(device))
        flags["fp16"] = name == "fp16"
        flags["use_cpu"] |= flags["bf16"] and device == "cpu"  # transformers wants both said


def _check_token() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise UserError("--push_to_hub needs a token of the Hugging Face Hub: run `hf auth login`, or give --hub_token")
