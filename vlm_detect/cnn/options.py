"""The options of a CNN's training, in addition to the flags of transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_detect.cnn.pixels import DEFAULT_CACHE
from vlm_detect.cnn.tasks import TASKS
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.backbones import STEMS
from vlm_detect.train.options import TrainOptions


@dataclass(frozen=True)
class NetworkOptions:
    """The network and what it is shown."""

    arch: str = field(default="fakenet2", metadata={"help": f"One of {', '.join(ARCHITECTURES)}."})
    weights: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a backbone's weights (resnet18, resnet50, frozen). Default: scratch."},
    )
    tune: str = field(default="all", metadata={"help": "all, or head: the features stay as they are."})
    stem: str | None = field(
        default=None,
        metadata={"help": f"Of a ResNet: {', '.join(STEMS)}. Default: small below 64 pixels, else imagenet."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels. Default: the images' own, at most the architecture's."}
    )
    fit: str = field(default="crop", metadata={"help": "crop: the middle, no pixel is computed anew; resize."})
    view: str = field(default="plain", metadata={"help": "plain, or invert_saturate."})
    saturation: float = field(default=8.0, metadata={"help": "Factor of the second view; published: 8 and 500."})


@dataclass(frozen=True)
class CnnDataOptions:
    """The images and what is asked about them."""

    data: str = field(default="data/pairs", metadata={"help": "A pair or image dataset (folder or Hub id)."})
    task: str = field(default="real_fake", metadata={"help": f"One of {', '.join(TASKS)}."})
    object_head: bool = field(default=False, metadata={"help": "A second head for the class of what is seen."})
    object_weight: float = field(default=1.0, metadata={"help": "Weight of its loss."})
    augment: list[str] = field(
        default_factory=lambda: ["flip"], metadata={"help": "flip, rotate, shift: pixels are moved, none computed."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most this many rows of the training split."})
    test_data: list[str] = field(
        default_factory=list,
        metadata={"help": "DATASET or DATASET:SPLIT (default: test) to score at the end, a row each."},
    )
    figures: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})
    pixels_dir: str = field(default=DEFAULT_CACHE, metadata={"help": "Where decoded images are kept."})
    resident: bool | None = field(
        default=None, metadata={"help": "Keep all pixels on the accelerator. Default: where they take half its memory."}
    )
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads on a CPU. Default: all cores."})


@dataclass
class CnnTrainOptions(TrainOptions):
    """TrainingArguments with the defaults of a small network."""

    # empty, for of None transformers makes a name of its own
    output_dir: str | None = field(default="", metadata={"help": "The run directory. Default: runs/cnn_ARCH."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images in a step, per device."})
    per_device_eval_batch_size: int = field(default=500, metadata={"help": "Images scored at once, per device."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=8.0, metadata={"help": "Epochs."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    logging_steps: float = field(default=100, metadata={"help": "Log the loss every so many steps."})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast; on a CPU with --use_cpu True."})
    metric_for_best_model: str | None = field(
        default="score", metadata={"help": "score (mean accuracy of the heads), accuracy, auroc, log_loss, ..."}
    )

    def __post_init__(self) -> None:
        if self.seeds:
            raise UserError("--seeds: a CNN's run has one; repeat the command with --seed N and another --output_dir")
        super().__post_init__()
