"""The options of preference tuning. Nothing heavy is imported here, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vlm_detect.config import check_at_least, check_known
from vlm_detect.errors import UserError
from vlm_detect.train.options import SCORES, ModelOptions, TrainOptions

# In the order of `faults.FAULTS`, which defines them.
FAULT_NAMES = ("wrong_place", "omitted", "other_image", "fault_on_photo", "other_verdict")


@dataclass(frozen=True)
class PreferenceModel(ModelOptions):
    model: str = field(
        default="auto",
        metadata={
            "help": "A run directory of `train`, whose adapter continues training, or a model that gets a new "
            "adapter: Hub id, folder, `nano`, or `auto`."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune == "full":
            raise UserError("--tune full: preference tuning needs a LoRA; omit it")


@dataclass(frozen=True)
class PreferenceData:
    """The dataset with reasons."""

    data: str = field(metadata={"help": "A pair or image dataset with reasons (vlm-detect add-reasons)."})
    limit: int | None = field(default=None, metadata={"help": "Use at most this many rows of the training split."})
    validation_limit: int | None = field(
        default=1000, metadata={"help": "Validate on at most this many images and preferences."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads on a CPU. Default: all cores, shared by the processes (accelerate alone sets one)."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "cpu_threads")
        check_at_least(self, 2, "validation_limit")


@dataclass(frozen=True)
class PreferenceOptions:
    """The preferences: checked explanations over the same with a fault."""

    faults: list[str] = field(
        default_factory=lambda: list(FAULT_NAMES),
        metadata={"help": f"Faults of rejected explanations: {', '.join(FAULT_NAMES)}."},
    )
    preferences_per_image: int = field(default=1, metadata={"help": "Rejected explanations per image."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "preferences_per_image")
        check_known(self, FAULT_NAMES, "faults")


@dataclass
class PreferenceTraining(TrainOptions):
    """The Trainer. Takes every flag of TRL's DPOConfig, with some other defaults."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", *SCORES)

    output_dir: str | None = field(default="runs/preference_lora", metadata={"help": "The run directory."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Preferences per step and device."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Preferences per validation batch and device."}
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})
    metric_for_best_model: str | None = field(
        default="loss", metadata={"help": "loss (of the preferences), or a verdict metric: " + ", ".join(SCORES)}
    )
    beta: float = field(
        default=0.1, metadata={"help": "Strength of the penalty for departing from the reference model."}
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"], metadata={"help": "TRL's losses, for example sigmoid (DPO), ipo, sft."}
    )
    bf16: bool | None = field(default=False, metadata={"help": "bfloat16 mixed precision."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for memory."})
    max_length: int | None = field(default=None, metadata={"help": "Unused: nothing is truncated."})
    # Both forwards of a step use every adapter, and searching for unused parameters costs time.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See torch's DDP."})
