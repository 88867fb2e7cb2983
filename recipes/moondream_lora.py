"""Finetune moondream2 with LoRA to tell AI images from photos.

    accelerate launch recipes/moondream_lora.py                                   # whatever this machine can do
    accelerate launch recipes/moondream_lora.py --config recipes/configs/moondream_lora.yaml --data data/pairs
    accelerate launch recipes/moondream_lora.py --config recipes/configs/moondream_nano.yaml

With no dataset in data/pairs and no --data, pairs are made from the bundled photos first. What comes out in
--output_dir: the adapter in PEFT's layout, the processor, calibration.json, run.json, trainer_state.json, checkpoints
and a model card. The same command again resumes a run that was stopped, or says that nothing is left to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.models.registry import load_vlm, resolve_id
from vlm_detect.train.calibration import fit
from vlm_detect.train.card import write_card
from vlm_detect.train.data import data_hashes, dataset_or_demo, open_splits
from vlm_detect.train.examples import QuestionOptions, Units
from vlm_detect.train.features import Features
from vlm_detect.train.lora import LoraOptions, add_lora
from vlm_detect.train.machine import dtype_of, use_cpu_cores
from vlm_detect.train.options import DataOptions, ModelOptions, TrainOptions
from vlm_detect.train.run_directory import RunDirectory
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.validation import ValidationSet, scores_of


@dataclass
class MoondreamOptions(TrainOptions):
    output_dir: str | None = field(default="runs/moondream_lora", metadata={"help": "The run directory."})


def main(argv: list[str]) -> None:
    options = parse_config(
        [ModelOptions, DataOptions, QuestionOptions, LoraOptions, MoondreamOptions], argv, doc=__doc__
    )
    model_options, data_options, question_options, lora_options, training = options
    use_cpu_cores(data_options.cpu_threads)

    # The data, and whether this run was begun or finished before.
    with training.main_process_first(desc="the dataset"):
        data = dataset_or_demo(data_options.data)
        train_rows, validation_rows = open_splits(data, data_options.limit)
    base = resolve_id(model_options.model, revision=model_options.revision)
    run = RunDirectory.open(training.output_dir, options, model=base.name, data_sha256=data_hashes(data))
    if run.finished:
        print(f"{run.path}: this run is finished, nothing is left to do (another --output_dir trains anew)")
        return
    units = Units(train_rows, question_options, training.seed, data_options.augment)
    validation = ValidationSet.of(validation_rows, data_options.validation_limit)

    # The model, and a LoRA around its linear layers.
    vlm = load_vlm(base.name, revision=base.revision, dtype=dtype_of(model_options.dtype), device=training.device)
    add_lora(vlm, lora_options, seed=training.seed)

    features = None
    if data_options.cache_features:
        if data_options.augment:
            raise UserError(
                "--cache_features keeps one view of an image and --augment draws others: leave one of them out"
            )
        features = Features.build(
            vlm,
            units.images,
            Path(data_options.features_dir),
            process=training.process_index,
            n_processes=training.world_size,
        )
        training.distributed_state.wait_for_everyone()

    # Training. After each epoch the validation split is scored; at the end the best checkpoint is loaded.
    trainer = DetectorTrainer(vlm, training, units, validation, pack=data_options.pack, features=features)
    is_main = trainer.is_world_process_zero()
    if is_main:
        run.write("running")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or run.checkpoint)

    # What stays: the adapter and the processor, the calibration, the card, and last the mark that all of it is there.
    trainer.save_model()
    odds = trainer.validation_odds()
    if is_main:
        trainer.save_state()
        fit(odds, validation.generated).save(run.path)
        write_card(run, train_rows, len(units), question_options, trainer.state.log_history)
        run.write("finished", validation=scores_of(odds, validation.generated), processes=training.world_size)
        print(f"{run.path}: done. Ask it: vlm-detect chat --model {run.path} IMAGE")


if __name__ == "__main__":
    run_main(main)
