"""The parts of `recipes/cnn.py`: what a network is made for, how it is made, and what a run leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_processing_base import ImageProcessingMixin

from vlm_detect.cnn.options import CnnDataOptions, NetworkOptions
from vlm_detect.cnn.pixels import Shots, common_side, decode_split
from vlm_detect.cnn.tasks import heads_of
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.backbones import STEMS, backbone_config
from vlm_detect.models.cnn.configuration import IMAGENET_MEAN, IMAGENET_STD, CnnConfig
from vlm_detect.models.cnn.squares import FITS, Fit
from vlm_detect.models.cnn.verdicts import SUSPECTED, VERDICT, odds_of
from vlm_detect.models.cnn.views import VIEWS
from vlm_detect.stats.calibration import Calibration, fit

_SMALL = 64  # pixels: below this ImageNet's stem would leave a ResNet next to nothing to look at


@dataclass(frozen=True)
class CnnData:
    """The images of a run, decoded to one size."""

    train: Shots
    validation: Shots


def check_choices(network: NetworkOptions, data: CnnDataOptions) -> None:
    """UserError for a word that no flag knows, or splits that would share a folder; before any image is decoded."""
    for flag, value, known in (
        ("arch", network.arch, list(ARCHITECTURES)),
        ("tune", network.tune, ["all", "head"]),
        ("stem", network.stem or "small", list(STEMS)),
        ("fit", network.fit, list(FITS)),
        ("view", network.view, list(VIEWS)),
    ):
        if value not in known:
            raise UserError(f"--{flag} {value}: unknown; choose from {', '.join(known)}")
    if network.arch == "frozen" and network.weights is None:
        raise UserError("--arch frozen needs --weights: the id of a vision model, such as facebook/dinov2-small")
    if network.weights and not ARCHITECTURES[network.arch].backbone:
        raise UserError(f"--weights: {network.arch} has none to load; it learns from scratch")
    names = Counter(f"{Path(folder).name}:{split}" for folder, split in splits_of(data))
    if shared := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"--test_data: {', '.join(shared)} is given more than once, and scores are kept by name: rename a folder"
        )


def image_size(network: NetworkOptions, data: CnnDataOptions) -> int:
    """The side in pixels that the run's images are brought to; UserError where the network takes no such images."""
    architecture = ARCHITECTURES[network.arch]
    if network.image_size:
        size = network.image_size
    elif network.arch == "frozen" and network.weights:
        size = int(backbone_config(network.weights)["image_size"])  # what its weights were learned at
    else:
        size = min(common_side(data.data), architecture.size)
    if size < architecture.smallest:
        small = ", ".join(name for name, other in ARCHITECTURES.items() if other.smallest <= size)
        raise UserError(
            f"--arch {network.arch} takes images of at least {architecture.smallest} pixels a side, these have {size}: "
            + (f"choose from {small}" if small else "no architecture takes them")
        )
    return size


def open_shots(network: NetworkOptions, data: CnnDataOptions) -> CnnData:
    """The training and validation images, decoded on first use."""
    size, fit = image_size(network, data), _fit(network.fit)
    train = decode_split(data.data, "train", size=size, fit=fit, limit=data.limit, cache=data.pixels_dir)
    return CnnData(train, decode_split(data.data, "validation", size=size, fit=fit, cache=data.pixels_dir))


def make_config(network: NetworkOptions, data: CnnDataOptions, shots: CnnData) -> CnnConfig:
    """Everything that builds the network; reads a backbone's configuration, not its weights."""
    size = int(shots.train.images.shape[1])
    backbone = backbone_config(network.weights) if network.weights else None
    mean, std = _statistics(network)
    return CnnConfig(
        arch=network.arch,
        image_size=size,
        fit=network.fit,
        view=network.view,
        saturation=network.saturation,
        heads=heads_of(shots.train, data.task, object_head=data.object_head),
        task=data.task,
        stem=network.stem or ("small" if size < _SMALL else "imagenet"),
        backbone_config=backbone,
        tune="head" if network.arch == "frozen" else network.tune,
        mean=mean,
        std=std,
    )


def place_for(shots: Shots, resident: bool | None, device: torch.device) -> torch.device:
    """Where the training pixels lie: on the accelerator where they take less than half of its free memory."""
    if device.type != "cuda":
        return torch.device("cpu")
    if resident is None:
        resident = shots.images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return device if resident else torch.device("cpu")


def splits_of(options: CnnDataOptions) -> Iterator[tuple[str, str]]:
    """(dataset, split): the validation split, and every `--test_data DATASET[:SPLIT]`."""
    yield options.data, "validation"
    for given in options.test_data:
        folder, _, split = (given, "", "") if Path(given).exists() else given.rpartition(":")
        folder, split = (folder, split) if folder else (split, "test")
        yield folder, split or "test"


def scored_splits(data: CnnData, options: CnnDataOptions, config: CnnConfig) -> Iterator[tuple[str, str, Shots]]:
    """As `splits_of`, with the images."""
    (own, validation), *tests = splits_of(options)
    yield own, validation, data.validation
    for folder, split in tests:
        size, fit = config.image_size, _fit(config.fit)
        yield folder, split, decode_split(folder, split, size=size, fit=fit, cache=options.pixels_dir)


def calibration_of(shots: Shots, logits: Mapping[str, np.ndarray], config: CnnConfig) -> Calibration:
    """Fitted on the images of `shots` that the verdict is about; `logits` (N, L) of each head."""
    labels, (suspected, other) = shots.column("label"), SUSPECTED[config.task]
    asked = np.isin(labels, [suspected, other])
    odds = odds_of(logits[VERDICT], (config.heads or {})[VERDICT], config.task)
    return fit(odds[asked], (labels == suspected)[asked])


def _fit(name: str) -> Fit:
    return "resize" if name == "resize" else "crop"


def _statistics(network: NetworkOptions) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a pretrained backbone expects; from scratch, pixels are brought to [-1, 1]."""
    if network.weights is None:
        return [0.5] * 3, [0.5] * 3
    try:
        found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(network.weights)[0]
    except OSError:  # weights without a processor: ImageNet's, as nearly all of them
        found = {}
    return list(found.get("image_mean", IMAGENET_MEAN)), list(found.get("image_std", IMAGENET_STD))
