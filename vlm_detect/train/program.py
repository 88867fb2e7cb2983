"""The training program shared by the recipes: `finetune`, from the data to the final adapter.

    options = Options.parse(argv, doc=__doc__, training=MyDefaults)     # a recipe is its defaults
    each_seed(options, finetune)

`finetune` reads from top to bottom; its steps follow in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import upload_folder
from transformers.trainer_utils import IntervalStrategy

from vlm_detect.config import command_line
from vlm_detect.errors import UserError
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.models.base import VLM
from vlm_detect.models.cnn.experts import load_expert
from vlm_detect.models.registry import ResolvedModel, check_reachable, load_vlm, resolve_id
from vlm_detect.train.card import write_card
from vlm_detect.train.checkpoints import checkpoint_damage
from vlm_detect.train.command import Options
from vlm_detect.train.curves import write_curves
from vlm_detect.train.data import check_labels, data_hashes, dataset_or_demo, open_splits, open_training
from vlm_detect.train.examples import Units, has_reasons
from vlm_detect.train.features import Features
from vlm_detect.train.fit_head import fit_at_end
from vlm_detect.train.mixture import Mixture
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.recalibrate import calibrated
from vlm_detect.train.recipe_trainer import RecipeTrainer
from vlm_detect.train.run_directory import RunDirectory
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.tuning import loading, scale_float16, tune, with_expert_tokens
from vlm_detect.train.usable import usable
from vlm_detect.train.validation import ValidationSet, scores_of


def finetune(options: Options) -> None:
    """One training run, for any model."""
    training = options.training

    # The data, and whether this run was begun or finished before.
    base = resolve_id(options.model.model, options.role, options.model.revision)
    data = open_data(options, base)
    run = open_run(options, base, data)
    if run.finished:
        return

    # The model, and its trained part.
    vlm = load(options, base, training.device)
    data = readable(options, vlm, data)

    # Training. After each epoch the validation split is scored; at the end the best checkpoint is loaded.
    trainer = make_trainer(options, vlm, data)
    train(trainer, run)

    # Results: the adapter and the processor, the calibration, the card, and finally the mark of completion.
    finish(trainer, run, options, data)


def load(options: Options, base: ResolvedModel, device: torch.device) -> VLM:
    """The model, and its trained part: a LoRA around its linear layers, and the projector of expert tokens, if any; or
    the complete language model."""
    vlm = load_vlm(base.name, revision=base.revision, device=device, **loading(options.model, device))
    scale_float16(options.training, vlm)
    if options.expert.expert:
        vlm = with_expert_tokens(vlm, options.expert)
    tune(vlm, options.model, options.lora, options.training.seed)
    return vlm


@dataclass(frozen=True)
class TrainingData:
    """The training split and the units sampled from it, and the validation images, if any."""

    names: list[str]
    parts: list[Dataset]  # the training splits: of `--data`, then of `--mix`
    units: Units | Mixture
    validation_rows: Dataset
    validation: ValidationSet | None

    @classmethod
    def from_rows(
        cls, options: Options, names: list[str], parts: list[Dataset], validation_rows: Dataset
    ) -> TrainingData:
        views = options.data.cached_views if options.data.cache_features and options.data.augment else None
        seed = options.training.seed
        units = [Units(part, options.questions, seed, options.data.augment, views) for part in parts]
        mixture = Mixture(units, options.data.weights) if len(units) > 1 else units[0]
        validation = None
        if len(validation_rows):
            validation = ValidationSet.from_rows(validation_rows, options.data.validation_limit)
        return cls(names, parts, mixture, validation_rows, validation)


def open_data(options: Options, base: ResolvedModel) -> TrainingData:
    """The dataset of `--data`, or pairs made from the bundled photos where there is none; with it those of `--mix`.

    Pairs are made only for a base model that can be had.

    The validation images are those of `--data` alone; without any the last checkpoint is what stays.
    """
    training = options.training
    with training.main_process_first(desc="the dataset"):
        name = dataset_or_demo(options.data.data, lambda: check_reachable(base))
        rows, validation_rows = open_splits(name, options.data.limit, options.data.validation)
    if not len(validation_rows):
        train_without_validation(training)
    if "explain" in options.questions.question_kinds and not has_reasons(rows) and training.process_index == 0:
        print(
            f"{name}: has no reasons, so explanations are trained only to state the origin (from the label); "
            f"add reasons with vlm-detect add-reasons {name} --out {name.rstrip('/')}_reasons"
        )
    others = [open_training(other, options.data.limit) for other in options.data.mix]
    return TrainingData.from_rows(options, [name, *options.data.mix], [rows, *others], validation_rows)


def train_without_validation(training: TrainOptions) -> None:
    """Set the flags so that validation is off and the last checkpoint is kept."""
    if training.early_stopping_patience is not None:
        raise UserError("--early_stopping_patience needs validation images: give --validation DATASET")
    training.eval_strategy = IntervalStrategy.NO
    training.do_eval = training.load_best_model_at_end = False


def readable(options: Options, vlm: VLM, data: TrainingData) -> TrainingData:
    """The data without what the model cannot read; prints what is skipped."""
    quiet = options.training.process_index > 0
    parts = [usable(part, name, vlm, quiet=quiet) for name, part in zip(data.names, data.parts, strict=True)]
    held = data.validation_rows
    if len(held):
        held = usable(held, options.data.validation or data.names[0], vlm, quiet=quiet)
    if all(one is other for one, other in zip([*parts, held], [*data.parts, data.validation_rows], strict=True)):
        return data
    for name, part in zip(data.names, parts, strict=True):
        check_labels(part, name)
    return TrainingData.from_rows(options, data.names, parts, held)


def open_run(options: Options, base: ResolvedModel, data: TrainingData) -> RunDirectory:
    """The run directory of these options."""
    facts = {"expert_sha256": load_expert(options.expert.expert).sha256} if options.expert.expert else {}
    return open_run_directory(options.training, options.groups, model=base.name, data_sha256=hashes_of(data), **facts)


def hashes_of(data: TrainingData) -> dict[str, str]:
    """sha256 of the files of every dataset, by name."""
    hashes = data_hashes(data.names[0])
    for other in data.names[1:]:
        hashes |= {f"{other}/{file}": found for file, found in data_hashes(other).items()}
    return hashes


def open_run_directory(training: TrainOptions, groups: Sequence[Any], **facts: Any) -> RunDirectory:
    """The run directory; prints a message if the run in it is finished."""
    given = training.resume_from_checkpoint
    if given and (damage := checkpoint_damage(Path(given))):
        raise UserError(
            f"--resume_from_checkpoint {given}: no complete checkpoint ({damage}); omit it to use the run's newest one"
        )
    run = RunDirectory.open(training.output_dir, groups, **facts, processes=training.world_size)
    if run.finished:
        print(f"{run.path}: this run is finished, nothing is left to do (give another --output_dir to train again)")
    return run


def make_trainer(options: Options, vlm: VLM, data: TrainingData) -> DetectorTrainer:
    """The Trainer, which reads cached image embeddings with `--cache_features`.

    Raises:
        UserError: for quantised weights with FSDP, which does not shard them and cannot load its checkpoints again.
    """
    features = None
    if options.data.cache_features:
        features = Features.build(
            vlm,
            data.units.images,
            Path(options.data.features_dir),
            process=options.training.process_index,
            n_processes=options.training.world_size,
        )
        options.training.distributed_state.wait_for_everyone()
    trainer = DetectorTrainer(
        vlm,
        options.training,
        data.units,
        data.validation,
        pack=options.data.pack,
        row_tokens=options.data.pack_tokens,
        features=features,
        loss_per=options.questions.loss_per,
        compiled=options.model.compile_layers is not None,
    )
    if options.model.quantize and trainer.is_fsdp_enabled:
        raise UserError(
            f"--quantize {options.model.quantize} does not work with FSDP, which cannot load such a checkpoint again: "
            "drop one of them (config accelerate_ddp)"
        )
    return trainer


def train(trainer: DetectorTrainer, run: RunDirectory) -> None:
    """Train, resuming from the last checkpoint if there is one. After each epoch the validation split is scored; at the
    end the best checkpoint is loaded."""
    if trainer.is_world_process_zero():
        run.write("running")
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint or run.checkpoint)


def finish(trainer: DetectorTrainer, run: RunDirectory, options: Options, data: TrainingData) -> None:
    """Leave adapter and processor, calibration and head, the card, and last the mark that all of it is there."""
    trainer.save_model(_internal_call=True)  # else the Trainer uploads it, alone; `publish` uploads the whole run
    odds = trainer.validation_odds() if data.validation is not None else np.array([])
    if trainer.is_world_process_zero():
        trainer.save_state()
        scores: dict[str, float] = {}
        if data.validation is not None:
            scores = scores_of(odds, data.validation.generated)
            calibrated(odds, data.validation).save(run.path)
        head = None
        if can_fit_head(trainer, options.training) and not options.questions.shuffle_labels:
            head = fit_at_end(trainer.vlm, run.path, data.parts[0], data.names[0], data.validation, odds)
        if measures := MeasureCalibration.load(Path(data.names[0])):
            measures.save(run.path)  # explanations of the run are checked against it
        history = trainer.state.log_history
        write_card(run, data.parts, len(data.units), options.questions, history, scores=scores, scored_images=len(odds))
        command = " ".join(command_line())
        write_curves(run.path, history, title=f"Training: {run.path.name}", command=command)
        run.write("finished", validation=scores, head=head)
        if options.training.push_to_hub:
            publish(run.path, trainer.hub_model_id, options.training.hub_token)
        print(f"{run.path}: done. Try it: vlm-detect chat --model {run.path} IMAGE")


def can_fit_head(trainer: RecipeTrainer, training: TrainOptions) -> bool:
    """Whether this process can fit a head: it is enabled, and the model is not sharded."""
    if training.fit_head and trainer.is_fsdp_enabled:
        print(f"no head is fitted of a sharded model: vlm-detect fit-head {training.output_dir} --data DATASET")
    return training.fit_head and not trainer.is_fsdp_enabled


def publish(folder: Path, repository: str, token: str | None) -> None:
    """Upload the results of a run, without its checkpoints, to the Hub repository created by the Trainer."""
    leave_out = ["checkpoint-*", "checkpoint-*/**"]
    try:
        upload_folder(repo_id=repository, folder_path=folder, token=token, ignore_patterns=leave_out)
    except Exception as error:  # the Hub client raises the errors of its HTTP library, which varies
        raise UserError(
            f"the run is finished and saved in {folder}, but uploading it failed ({error}): run "
            f"hf upload {repository} {folder} --exclude 'checkpoint-*'"
        ) from error
    print(f"https://huggingface.co/{repository}: uploaded")
