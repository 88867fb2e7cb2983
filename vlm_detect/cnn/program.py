"""The training program of the CNNs: `train_network`, from the images to the network and its scores.

It reads from top to bottom; its steps follow in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed
from transformers.image_processing_base import ImageProcessingMixin

from vlm_detect.cnn.batches import Batches
from vlm_detect.cnn.card import write_card
from vlm_detect.cnn.evaluation import evaluate_split
from vlm_detect.cnn.figures import facts_of, line_of, write_figures
from vlm_detect.cnn.options import CnnDataOptions, CnnTrainOptions, NetworkOptions, splits_of
from vlm_detect.cnn.pixels import Shots, common_side, decode_split
from vlm_detect.cnn.tasks import heads_of, targets_of
from vlm_detect.cnn.trainer import CnnTrainer
from vlm_detect.errors import UserError
from vlm_detect.machine import keep_freed_memory, use_cpu_cores
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.backbones import backbone_config
from vlm_detect.models.cnn.configuration import IMAGENET_MEAN, IMAGENET_STD, CnnConfig
from vlm_detect.models.cnn.model import new_model
from vlm_detect.models.cnn.squares import Fit
from vlm_detect.models.cnn.verdicts import COMPARED_CLASSES, VERDICT, odds_of
from vlm_detect.quiet import no_bars
from vlm_detect.stats.calibration import Calibration, fit
from vlm_detect.train.data import data_hashes
from vlm_detect.train.run_directory import RunDirectory

_SMALL = 64  # pixels: below this ImageNet's stem would leave a ResNet next to nothing to look at


@no_bars("transformers")  # of files that are written in a tenth of a second
def train_network(network: NetworkOptions, data_options: CnnDataOptions, training: CnnTrainOptions) -> None:
    """One run of `vlm-detect train cnn`."""
    use_cpu_cores(data_options.cpu_threads)
    keep_freed_memory()
    training.output_dir = training.output_dir or f"runs/cnn_{network.arch}"

    # The images, decoded once, and whether this run was already started or finished.
    with training.main_process_first(desc="the images"):
        data = open_shots(network, data_options)
    config = make_config(network, data_options, data)
    run = RunDirectory.open(
        training.output_dir, [network, data_options, training], data_sha256=data_hashes(data_options.data)
    )
    if run.finished:
        print(f"{run.path}: this run is finished, nothing is left to do (give another --output_dir to train again)")
        return

    # The network, and its training set where the steps find it fastest.
    set_seed(training.seed)
    model = new_model(config, network.weights)
    targets = targets_of(data.train, config.heads or {}, config.task)
    device = place_for(data.train, data_options.resident, training.device)
    batches = Batches(data.train, targets, augment=data_options.augment, seed=training.seed, device=device)
    # A last batch of one image would have no variance for a batch norm to divide by.
    training.dataloader_drop_last = len(batches) > training.train_batch_size

    # Training. After each epoch the validation split is scored; at the end the best checkpoint is loaded.
    trainer = CnnTrainer(model, training, batches, data.validation, head_weights={"object": data_options.object_weight})
    is_main = trainer.is_world_process_zero()
    if is_main:
        run.write("running")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or run.checkpoint)

    # Results: the network, the calibration, the scores of each split, and finally the mark of completion.
    trainer.save_model()
    summaries = {}
    for source, split, shots in scored_splits(data, data_options, config):
        logits = trainer.logits(shots)
        if not is_main:
            continue
        own = source == data_options.data and split == "validation"
        if own:
            calibration_of(shots, logits, config).save(run.path)
        folder = run.path / ("validation" if own else f"tests/{Path(source).name}-{split}")
        summary = evaluate_split(shots, logits, config, folder, data=source, split=split, model=str(run.path))
        summaries[summary["benchmark"]] = summary
        print(line_of(summary), flush=True)
    if is_main:
        trainer.save_state()
        facts = facts_of(trainer, run)
        write_card(run, config, data.train, summaries, parameters=facts["parameters"], command=facts["command"])
        if data_options.figures:
            write_figures(Path(data_options.figures), run, config, summaries, facts)
        run.write("finished", validation=next(iter(summaries.values()))["heads"], **facts)
        print(f"{run.path}: done. Look where it looked: vlm-detect explain --model {run.path} IMAGES --out PAGE.html")


@dataclass(frozen=True)
class CnnData:
    """The images of a run, decoded to one size."""

    train: Shots
    validation: Shots


def image_size(network: NetworkOptions, data: CnnDataOptions) -> int:
    """The side in pixels that the run's images are brought to; UserError if the network does not accept that size."""
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


def scored_splits(data: CnnData, options: CnnDataOptions, config: CnnConfig) -> Iterator[tuple[str, str, Shots]]:
    """As `splits_of`, with the images."""
    (own, validation), *tests = splits_of(options)
    yield own, validation, data.validation
    for folder, split in tests:
        size, fit = config.image_size, _fit(config.fit)
        yield folder, split, decode_split(folder, split, size=size, fit=fit, cache=options.pixels_dir)


def calibration_of(shots: Shots, logits: Mapping[str, np.ndarray], config: CnnConfig) -> Calibration:
    """Fitted on the images of `shots` that the verdict is about; `logits` (N, L) of each head."""
    labels, (positive, other) = shots.column("label"), COMPARED_CLASSES[config.task]
    asked = np.isin(labels, [positive, other])
    odds = odds_of(logits[VERDICT], (config.heads or {})[VERDICT], config.task)
    found = fit(odds[asked], (labels == positive)[asked], groups=shots.column("group")[asked].tolist())
    if found.doubt:
        print(f"calibration: not reliable, {found.doubt} on the validation split")
    return found


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
