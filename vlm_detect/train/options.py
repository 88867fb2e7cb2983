"""The options of a training run: the model, the data, the questions, the LoRA, and the Trainer's flags.

Nothing heavy is imported here, so that `--help` is fast; `arguments.py` has all of the Trainer's flags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlm_detect.config import check_at_least, check_between, check_known
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS, training_kinds

if TYPE_CHECKING:
    from transformers import TrainingArguments as _Base
else:
    _Base = object

DEFAULT_DATA = "data/pairs"
# In the order in which they are applied: JPEG behind everything that a camera knows.
AUGMENTATIONS = (
    "flip",
    "rotate",
    "crop",
    "rescale",
    "blur",
    "noise",
    "jpeg",
    "invert_saturate",
    "typographic",
    "erase",
)
MOST_EXPERT_TOKENS = 64
LOSS_PER = ("token", "answer")
LORA_WORDS = ("attention", "mlp", "all-linear", "vision", "head")
SCORES = ("score", "auroc", "balanced_accuracy", "log_loss")  # of the validation split


@dataclass(frozen=True)
class ModelOptions:
    """The model to finetune."""

    model: str = field(
        default="auto",
        metadata={
            "help": "Hub id, folder, `nano` (embedded; tests the pipeline on a CPU), or `auto`: the real model "
            "if it fits the accelerator's free memory, else nano."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub id. Default: a pinned one."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={
            "help": "The weights' dtype: float32, bfloat16, float16, or auto (the default): bfloat16 on a GPU that "
            "computes in it, else float32, or float16 for weights that were trained in it."
        },
    )
    quantize: Literal["nf4", "int8"] | None = field(
        default=None,
        metadata={"help": "nf4 or int8: quantise the language model's frozen weights (QLoRA; needs bitsandbytes)."},
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
        metadata={
            "help": "Compile each decoder layer with this torch backend, for example inductor. Default: no compilation."
        },
    )

    def __post_init__(self) -> None:
        if self.quantize and self.tune == "full":
            raise UserError(f"--tune full cannot train weights quantised to {self.quantize}: omit --quantize")
        if self.dtype == "float16" and self.tune == "full":
            raise UserError("--tune full cannot train weights in float16, whose gradients underflow: omit --dtype")


@dataclass(frozen=True)
class DataOptions:
    """The training dataset: pairs, single images, or conversations."""

    data: str = field(
        default=DEFAULT_DATA,
        metadata={
            "help": "A pair or image dataset (folder or Hub id), or a JSON file of conversations in LLaVA's format. "
            "If the default does not exist, pairs are made from the bundled photos."
        },
    )
    validation: str | None = field(
        default=None,
        metadata={
            "help": "Validate on this dataset's validation split. Default: that of --data; for conversations, a fifth."
        },
    )
    mix: list[str] = field(
        default_factory=list, metadata={"help": "More training datasets; validation uses only --data."}
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={"help": "With --mix: the proportions of an epoch, starting with --data. Default: every unit once."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most this many rows of the training split."})
    validation_limit: int | None = field(
        default=1000, metadata={"help": "Score at most this many validation images after each epoch."}
    )
    pack: bool = field(
        default=True,
        metadata={"help": "Pack all questions of an image after one image prefix (the same loss, faster)."},
    )
    pack_tokens: int | None = field(
        default=None,
        metadata={
            "help": "With --pack: pack several images into rows of at most N tokens. Default: one image per row."
        },
    )
    cache_features: bool = field(
        default=False,
        metadata={
            "help": "Compute the frozen tower's image embeddings once and train from them (the same loss, faster)."
        },
    )
    features_dir: str = field(default="runs/features", metadata={"help": "Folder of cached image embeddings."})
    augment: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Augmentations, sampled in each epoch, equal for photo and twin: {', '.join(AUGMENTATIONS)}."
        },
    )
    cached_views: int = field(
        default=4,
        metadata={"help": "With --cache_features and --augment: number of augmented views cached per image."},
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
            raise UserError("--weights needs --mix with the other datasets")
        if self.weights and (len(self.weights) != 1 + len(self.mix) or min(self.weights) <= 0):
            given = " ".join(f"{weight:g}" for weight in self.weights)
            raise UserError(f"--weights {given}: give a number above 0 for each of the {1 + len(self.mix)} datasets")


@dataclass(frozen=True)
class QuestionOptions:
    """The questions about each image in an epoch."""

    question_kinds: list[str] = field(
        default_factory=lambda: ["yes_no"], metadata={"help": f"Kinds to sample from: {', '.join(training_kinds())}."}
    )
    questions_per_image: int = field(default=1, metadata={"help": "Number of questions per image and epoch."})
    loss_per: str = field(
        default="token",
        metadata={
            "help": "What counts equally in the loss: token, or answer, so that one-word verdicts weigh as much as "
            "explanations."
        },
    )
    shuffle_labels: bool = field(
        default=False,
        metadata={"help": "Train on shuffled labels, as a control that a real result has to beat."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "questions_per_image")
        if self.loss_per not in LOSS_PER:
            raise UserError(f"--loss_per {self.loss_per}: choose from {', '.join(LOSS_PER)}")
        KINDS.check(*self.question_kinds, flag="--question_kinds")
        if untrained := [kind for kind in self.question_kinds if not KINDS[kind].trains]:
            raise UserError(
                f"--question_kinds {' '.join(untrained)}: only for benchmarks; choose from "
                f"{', '.join(training_kinds())}"
            )


@dataclass(frozen=True)
class LoraOptions:
    """The adapter. Effective weight: W + (alpha / r) B A; --use_rslora and --use_dora can be combined."""

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
        metadata={"help": "Also train the connector between tower and language model, in full."},
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
        metadata={
            "help": "Train each output's magnitude separately from its direction (DoRA, arXiv 2402.09353); slower."
        },
    )

    def __post_init__(self) -> None:
        if unknown := [word for word in self.lora_targets.split("+") if word not in LORA_WORDS]:
            raise UserError(
                f"--lora_targets {self.lora_targets}: unknown {', '.join(unknown)}; choose from {', '.join(LORA_WORDS)}"
            )
        check_at_least(self, 1, "lora_r", "lora_alpha", "lora_last_layers")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: give a fraction from 0 to below 1")


@dataclass(frozen=True)
class ExpertOptions:
    """Tokens of an expert CNN behind the image prefix, trained with the LoRA (docs/trust.md)."""

    expert: str | None = field(
        default=None, metadata={"help": "The run of a CNN (vlm-detect train cnn) whose feature maps become tokens."}
    )
    expert_tokens: int | None = field(
        default=None, metadata={"help": f"With --expert: the number of tokens, 1 to {MOST_EXPERT_TOKENS}."}
    )
    expert_dropout: float = field(
        default=0.2,
        metadata={
            "help": "With --expert: in training, the fraction of features that a token drops, and of images without."
        },
    )

    def __post_init__(self) -> None:
        check_between(self, 1, MOST_EXPERT_TOKENS, "expert_tokens")
        if self.expert and not self.expert_tokens:
            raise UserError(
                f"--expert {self.expert} needs --expert_tokens N; a CNN that only votes needs no training: "
                "vlm-detect fit-head RUN --expert CNN_RUN"
            )
        if self.expert_tokens and not self.expert:
            raise UserError(f"--expert_tokens {self.expert_tokens} needs --expert with the run of a CNN")
        if not 0 <= self.expert_dropout < 1:
            raise UserError(f"--expert_dropout {self.expert_dropout}: give a fraction from 0 to below 1")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class TrainOptions(_Base):
    """The Trainer. Takes every flag of transformers' TrainingArguments, with some other defaults.

    A unit of `per_device_train_batch_size` is two images: an unaltered one and its counterpart. A run gets a
    `TrainArguments`, which has the fields of both classes.
    """

    replaced: ClassVar[Mapping[str, str]] = {
        "evaluation_strategy": "use --eval_strategy (transformers 5)",
        "gpus": "use the launcher: accelerate launch --quiet --num_processes N",
        "logging_dir": "use the environment variable TENSORBOARD_LOGGING_DIR (transformers 5)",
        "lr": "use --learning_rate",
        "no_cuda": "use --use_cpu (transformers 5)",
        "overwrite_output_dir": "nothing is overwritten: give another --output_dir, or remove the folder",
        "warmup_ratio": "use --warmup_steps (transformers 5); a value below 1 is a fraction of all steps",
    }
    autocasts_on_gpu: ClassVar[bool] = True  # where no flag says it
    metrics: ClassVar[Sequence[str]] = SCORES  # allowed values of --metric_for_best_model; empty: any

    output_dir: str | None = field(default=None, metadata={"help": "The run directory. Default: runs/RECIPE."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Units of two images (a photo and its twin) per step and device."}
    )
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images per validation batch and device."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up steps; a value below 1 is a fraction of all steps."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs."})
    logging_steps: float = field(default=1, metadata={"help": "Log the loss every N steps."})
    # Zeros instead of NaN would hide a failed run.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Omit NaN and infinite losses from the log."})
    eval_strategy: Literal["no", "steps", "epoch"] = field(
        default="epoch", metadata={"help": "When to run validation."}
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(
        default="epoch", metadata={"help": "When to save a checkpoint."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep; the best is always kept."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Load the best checkpoint at the end, not the last."}
    )
    metric_for_best_model: str | None = field(
        default="score",
        metadata={"help": "score (mean of AUROC and balanced accuracy), auroc, balanced_accuracy, log_loss."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without improvement. Default: never."}
    )
    autocast: Literal["auto", "bf16", "fp16", "no"] | None = field(
        default=None,
        metadata={
            "help": "Autocast of a step; the trained weights stay float32. auto: bf16 where the device has "
            "instructions for it, fp16 for weights in float16. Default: what --bf16 and --fp16 say, else auto on a GPU."
        },
    )
    # All adapters are used in every step, and searching for unused parameters costs time.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See torch's DDP."})
    report_to: str | list[str] | None = field(
        default_factory=lambda: "tensorboard" if find_spec("tensorboard") else "none",
        metadata={"help": "tensorboard (the default where it is installed), wandb, ..., or none."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=_has_cuda, metadata={"help": "Pin batches in memory. Default: if CUDA is available."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: examples have no columns."})
    fit_head: bool = field(
        default=True,
        metadata={
            "help": "At the end, fit a head on the tower's features of up to 4,000 training images, and weigh it "
            "against the language model on the validation images."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of all random choices."})
    seeds: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Train once per seed, in subfolders of --output_dir; seeds.json has mean and standard deviation."
        },
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
            raise UserError(
                f"--label_smoothing_factor {self.label_smoothing_factor}: give a fraction from 0 to below 1"
            )
        if self.train_sampling_strategy != "random":
            raise UserError(
                f"--train_sampling_strategy {self.train_sampling_strategy}: units have their own "
                "order, with both classes in every batch; omit it"
            )
        flags: dict[str, Any] = self.__dict__
        for name, value in flags.items():
            if isinstance(value, str) and value.startswith("{"):
                try:
                    json.loads(value)
                except ValueError as error:
                    raise UserError(f"--{name} {value}: not JSON ({error})") from error
        self._set_precision()
        if (word := str(flags["fsdp"]).lower()) in (
            "true",
            "false",
        ):  # older versions of transformers accept only these names
            flags["fsdp"] = word == "true"
        # transformers 5.20 renamed the flag and warns about the old name; both names work here.
        if "activation_checkpointing" in flags and flags["activation_checkpointing"] is None:
            flags["activation_checkpointing"] = flags["gradient_checkpointing"]
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if self.load_best_model_at_end and self.metrics and metric not in self.metrics:
            raise UserError(f"--metric_for_best_model {metric}: choose from {', '.join(self.metrics)}")
        if self.push_to_hub and not self.hub_token:
            _check_token()
        super().__post_init__()

    def _set_precision(self) -> None:
        """Put `--autocast` into the flags that transformers has for it."""
        from vlm_detect.machine import best_device, computes_in_bfloat16  # late: with torch, which --help does without

        flags: dict[str, Any] = self.__dict__
        name, device = self.autocast, "cpu" if flags["use_cpu"] else best_device().type
        if flags["bf16"] or flags["fp16"]:
            if name:
                raise UserError(f"--autocast {name} and --bf16 or --fp16 say the same: give one of them")
            return
        if name is None and device == "cuda" and self.autocasts_on_gpu:
            name = "auto"
        if name is None:
            return
        flags["bf16"] = name == "bf16" or (name == "auto" and computes_in_bfloat16(device))
        flags["fp16"] = name == "fp16"
        flags["use_cpu"] |= flags["bf16"] and device == "cpu"  # transformers wants both said


def _check_token() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise UserError("--push_to_hub needs a token of the Hugging Face Hub: run `hf auth login`, or give --hub_token")
