"""The options of a CNN's training, in addition to the flags of transformers' TrainingArguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from vlm_detect.config import check_at_least, check_known
from vlm_detect.errors import UserError
from vlm_detect.train.options import TrainOptions

DEFAULT_CACHE = "runs/pixels"
Task = Literal["real_fake", "generator", "real_edited", "fake_edited", "three_way"]


@dataclass(frozen=True)
class NetworkOptions:
    """The network and what it is shown."""

    arch: str = field(
        default="fakenet2",
        metadata={
            "help": "mai, flux, flux_small, fakenet, fakenet2, fakenet3, resnet18, resnet50, npr, or frozen: a vision "
            "model of transformers with linear heads."
        },
    )
    weights: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a backbone's weights (resnet18, resnet50, frozen). Default: scratch."},
    )
    tune: Literal["all", "head"] = field(default="all", metadata={"help": "head: the features stay as they are."})
    stem: Literal["imagenet", "small", "small_stride2"] | None = field(
        default=None, metadata={"help": "Of a ResNet. Default: small below 64 pixels, else imagenet."}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels. Default: the images' own, at most the architecture's."}
    )
    fit: Literal["crop", "resize"] = field(
        default="crop", metadata={"help": "crop takes the centre without resampling."}
    )
    view: Literal["plain", "invert_saturate"] = field(
        default="plain", metadata={"help": "What the network is shown of an image."}
    )
    saturation: float = field(default=8.0, metadata={"help": "Factor of the second view; published: 8 and 500."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size")
        from vlm_detect.models.cnn.architectures import ARCHITECTURES  # late: with torch, which --help does without

        check_known(self, list(ARCHITECTURES), "arch")
        if self.arch == "frozen" and self.weights is None:
            raise UserError("--arch frozen needs --weights: the id of a vision model, such as facebook/dinov2-small")
        if self.weights and not ARCHITECTURES[self.arch].backbone:
            raise UserError(f"--weights: {self.arch} has none to load; it learns from scratch")


@dataclass(frozen=True)
class CnnDataOptions:
    """The images and what is asked about them."""

    data: str = field(default="data/pairs", metadata={"help": "A pair or image dataset (folder or Hub id)."})
    task: Task = field(default="real_fake", metadata={"help": "What the network decides."})
    object_head: bool = field(default=False, metadata={"help": "A second head for the class of what is seen."})
    object_weight: float = field(default=1.0, metadata={"help": "Weight of its loss."})
    augment: list[Literal["flip", "rotate", "shift", "erase"]] = field(
        default_factory=lambda: ["flip"],
        metadata={"help": "Pixels are moved, none resampled; erase hides a square of half the side."},
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

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "cpu_threads")
        check_at_least(self, 0, "object_weight")
        names = Counter(f"{Path(folder).name}:{split}" for folder, split in splits_of(self))
        if shared := [name for name, count in names.items() if count > 1]:
            raise UserError(
                f"--test_data: {', '.join(shared)} is given more than once, and scores are kept by name: rename a "
                "folder"
            )


@dataclass
class CnnTrainOptions(TrainOptions):
    """TrainingArguments with the defaults of a small network."""

    autocasts_on_gpu: ClassVar[bool] = False  # small networks say it in their configs

    # empty, for of None transformers makes a name of its own
    output_dir: str | None = field(default="", metadata={"help": "The run directory. Default: runs/cnn_ARCH."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images in a step, per device."})
    per_device_eval_batch_size: int = field(default=500, metadata={"help": "Images scored at once, per device."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=8.0, metadata={"help": "Epochs."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    logging_steps: float = field(default=100, metadata={"help": "Log the loss every so many steps."})
    metric_for_best_model: str | None = field(
        default="score", metadata={"help": "score (mean accuracy of the heads), accuracy, auroc, log_loss, ..."}
    )

    metrics: ClassVar[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if self.seeds:
            raise UserError("--seeds: a CNN's run has one; repeat the command with --seed N and another --output_dir")
        super().__post_init__()


def splits_of(options: CnnDataOptions) -> Iterator[tuple[str, str]]:
    """(dataset, split): the validation split, and every `--test_data DATASET[:SPLIT]`."""
    yield options.data, "validation"
    for given in options.test_data:
        folder, _, split = (given, "", "") if Path(given).exists() else given.rpartition(":")
        folder, split = (folder, split) if folder else (split, "test")
        yield folder, split or "test"
