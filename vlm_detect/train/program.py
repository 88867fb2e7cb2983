"""The training program that the recipes share, in the order in which a recipe calls it.

    options = Options.parse(argv, doc=__doc__)      # flags and YAML; a recipe brings defaults of its own
    each_seed(options, finetune)                    # what follows, once or for each of --seeds
    data = open_data(options)                       # what is learned from, and what is scored after each epoch
    run = open_run(options, base, data)             # begun before? finished before?
    ...                                             # the recipe's model and its LoRA
    trainer = make_trainer(options, vlm, data)
    train(trainer, run)
    finish(trainer, run, options, data)             # what stays

A recipe differs from another in its model and its defaults alone.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import upload_folder

from vlm_detect.config import REPOSITORY, parse_config, read_run_json, write_json
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import NANO_NAMES, ResolvedModel, Role, resolve_id
from vlm_detect.train.calibration import fit
from vlm_detect.train.card import write_card
from vlm_detect.train.curves import write_curves
from vlm_detect.train.data import data_hashes, dataset_or_demo, open_splits
from vlm_detect.train.examples import QuestionOptions, Units
from vlm_detect.train.features import Features
from vlm_detect.train.lora import LoraOptions
from vlm_detect.train.machine import use_cpu_cores
from vlm_detect.train.mixture import Mixture
from vlm_detect.train.options import DataOptions, ModelOptions, TrainOptions
from vlm_detect.train.run_directory import RunDirectory
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.validation import ValidationSet, scores_of


@dataclass(frozen=True)
class Options:
    """Everything that a run can be told."""

    model: ModelOptions
    data: DataOptions
    questions: QuestionOptions
    lora: LoraOptions
    training: TrainOptions

    @classmethod
    def parse(
        cls,
        argv: Sequence[str],
        *,
        doc: str | None,
        training: type[TrainOptions],
        model: type[ModelOptions] = ModelOptions,
        lora: type[LoraOptions] = LoraOptions,
        nano_config: str | None = None,
        role: Role = "vlm",
    ) -> Options:
        """From `--config YAML` and flags; `training`, `model`, `lora`: a recipe's own, with its defaults.

        Where no config is named and the model turns out to be nano, `nano_config` is read: what suits a real model
        teaches one of that size nothing.
        """
        groups = [model, DataOptions, QuestionOptions, lora, training]
        options = cls(*parse_config(groups, argv, doc=doc))
        named = any(arg == "--config" or arg.startswith("--config=") for arg in argv)
        if nano_config and not named and resolve_id(options.model.model, role).name in NANO_NAMES:
            config = REPOSITORY / "recipes" / "configs" / nano_config
            print(f"the model is nano: {config.name} gives what no flag does")
            options = cls(*parse_config(groups, ["--config", str(config), *argv], doc=doc))
        use_cpu_cores(options.data.cpu_threads)
        return options

    @property
    def groups(self) -> list[Any]:
        return [self.model, self.data, self.questions, self.lora, self.training]

    def with_seed(self, seed: int) -> Options:
        """The same for one of several seeds: a run of its own, in a folder of the run directory."""
        training = copy.copy(self.training)  # `replace` would derive anew what is derived already
        training.seed, training.seeds = seed, []
        training.output_dir = str(Path(str(training.output_dir)) / f"seed_{seed}")
        return replace(self, training=training)


def each_seed(options: Options, finetune: Callable[[Options], None]) -> None:
    """Call `finetune` once, or for each of `--seeds`; then `seeds.json` has every score's mean and spread."""
    training = options.training
    if not training.seeds:
        finetune(options)
        return
    folder = Path(str(training.output_dir))
    for seed in training.seeds:
        finetune(options.with_seed(seed))
    if training.process_index == 0:
        runs = {seed: (read_run_json(folder / f"seed_{seed}") or {})["validation"] for seed in training.seeds}
        summary = spread(list(runs.values()))
        write_json(folder / "seeds.json", {"seeds": runs, **summary})
        for name, value in summary["mean"].items():
            print(f"{name}: {value:.4f} ± {summary['standard_deviation'][name]:.4f} over {len(runs)} seeds")


def spread(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of each score; the latter is 0 of a single run."""
    columns = {name: [one[name] for one in scores] for name in scores[0]}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "standard_deviation": {
            name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()
        },
    }


@dataclass(frozen=True)
class TrainingData:
    """The training split and the units drawn from it, and the validation images."""

    name: str
    parts: list[Dataset]  # the training splits: of `--data`, then of `--mix`
    units: Units | Mixture
    validation: ValidationSet


def open_data(options: Options) -> TrainingData:
    """The dataset of `--data`, or pairs made from the bundled photos where there is none; with it those of `--mix`.

    The validation images are those of `--data` alone.
    """
    training = options.training
    with training.main_process_first(desc="the dataset"):
        name = dataset_or_demo(options.data.data)
        rows, validation_rows = open_splits(name, options.data.limit, options.data.validation)
    views = options.data.cached_views if options.data.cache_features and options.data.augment else None
    parts = [rows]
    for other in options.data.mix:
        parts.append(open_splits(other, options.data.limit, options.data.validation)[0])
    units = [Units(part, options.questions, training.seed, options.data.augment, views) for part in parts]
    mixture = Mixture(units, options.data.weights) if len(units) > 1 else units[0]
    return TrainingData(name, parts, mixture, ValidationSet.of(validation_rows, options.data.validation_limit))


def open_run(options: Options, base: ResolvedModel, data: TrainingData) -> RunDirectory:
    """The run directory; says so where the run in it is finished."""
    hashes = data_hashes(data.name)
    for other in options.data.mix:
        hashes |= {f"{other}/{file}": found for file, found in data_hashes(other).items()}
    run = RunDirectory.open(options.training.output_dir, options.groups, model=base.name, data_sha256=hashes)
    if run.finished:
        print(f"{run.path}: this run is finished, nothing is left to do (another --output_dir trains anew)")
    return run


def make_trainer(options: Options, vlm: VLM, data: TrainingData) -> DetectorTrainer:
    """The Trainer, reading cached image embeddings where `--cache_features` asks for them."""
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
    return DetectorTrainer(
        vlm,
        options.training,
        data.units,
        data.validation,
        pack=options.data.pack,
        row_tokens=options.data.pack_tokens,
        features=features,
    )


def train(trainer: DetectorTrainer, run: RunDirectory) -> None:
    """Train, from the last checkpoint where there is one. After each epoch the validation split is scored; at the end
    the best checkpoint is loaded."""
    if trainer.is_world_process_zero():
        run.write("running")
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint or run.checkpoint)


def finish(trainer: DetectorTrainer, run: RunDirectory, options: Options, data: TrainingData) -> None:
    """Leave the adapter and the processor, the calibration, the card, and last the mark that all of it is there."""
    trainer.save_model()
    odds = trainer.validation_odds()
    if trainer.is_world_process_zero():
        trainer.save_state()
        fit(odds, data.validation.generated).save(run.path)
        write_card(run, data.parts, len(data.units), options.questions, trainer.state.log_history)
        scores = scores_of(odds, data.validation.generated)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        write_curves(run.path, trainer.state.log_history, title=f"Training: {run.path.name}", command=command)
        run.write("finished", validation=scores, processes=options.training.world_size)
        if options.training.push_to_hub:
            publish(run.path, trainer.hub_model_id, options.training.hub_token)
        print(f"{run.path}: done. Ask it: vlm-detect chat --model {run.path} IMAGE")


def publish(folder: Path, repository: str, token: str | None) -> None:
    """Upload what a run leaves, its checkpoints apart, to a Hub repository that the Trainer has made."""
    upload_folder(
        repo_id=repository, folder_path=folder, token=token, ignore_patterns=["checkpoint-*", "checkpoint-*/**"]
    )
    print(f"https://huggingface.co/{repository}: uploaded")
