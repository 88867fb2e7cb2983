"""The program of preference tuning: `prefer`, from the reasons of a dataset to the final adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from peft import PeftModel
from transformers.trainer_utils import IntervalStrategy

from vlm_detect.config import command_line
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import adapter_base, load_vlm, resolve_id
from vlm_detect.train.curves import write_curves
from vlm_detect.train.data import data_hashes
from vlm_detect.train.fit_head import fit_at_end
from vlm_detect.train.preference_card import write_preference_card
from vlm_detect.train.preference_run import PreferenceRun
from vlm_detect.train.preference_trainer import PreferenceTrainer
from vlm_detect.train.preferences import counts_of, make_preferences, reason_columns
from vlm_detect.train.program import can_fit_head, open_run_directory, publish
from vlm_detect.train.recalibrate import calibrated
from vlm_detect.train.run_directory import RunDirectory
from vlm_detect.train.tuning import loading, scale_float16, tune
from vlm_detect.train.usable import usable
from vlm_detect.train.validation import ValidationSet, scores_of

PREFERENCES = "preferences.parquet"


def prefer(options: PreferenceRun) -> None:
    """One run: data, preferences, model, training, results."""
    training = options.training
    with training.main_process_first(desc="the dataset"):
        opened = open_dataset(options.data.data)
    if "train" not in opened or not len(opened["train"]):
        raise UserError(f"{options.data.data} has no train split (it has {', '.join(opened)})")
    reason_columns(opened["train"], options.data.data)  # said before a model is loaded
    source = resolve_id(options.model.model, revision=options.model.revision)
    hashes = data_hashes(options.data.data)
    run = open_run_directory(training, options.groups, model=source.name, data_sha256=hashes)
    if run.finished:
        return

    # The model: a run whose adapter continues training, or a model that gets a new adapter.
    held = loading(options.model, training.device)
    vlm = load_vlm(source.name, revision=source.revision, device=training.device, **held)
    scale_float16(training, vlm)
    if vlm.trained_whole:
        raise UserError(
            f"{source.name}: has tokens of an expert CNN, which preference tuning does not read: give a run without"
        )
    if isinstance(vlm.model, PeftModel):
        continue_training(vlm, options)
    else:
        tune(vlm, options.model, options.lora, training.seed)

    # The preferences of the training split, and of the validation split if it has reasons.
    quiet = training.process_index > 0
    splits = {
        name: _first(usable(opened[name], options.data.data, vlm, quiet=quiet), limit)
        for name, limit in (("train", options.data.limit), ("validation", None))
        if name in opened and len(opened[name])
    }
    with training.main_process_first(desc="the preferences"):
        learned = make(options, splits["train"])
        held_out = make(options, splits["validation"]) if "validation" in splits else None
    if held_out is not None and options.data.validation_limit:
        held_out = _first(held_out, options.data.validation_limit)
    if held_out is None:
        without_validation(options)
    validation = (
        ValidationSet.from_rows(splits["validation"], options.data.validation_limit) if held_out is not None else None
    )

    trainer = PreferenceTrainer(
        vlm,
        training,
        learned,
        splits["train"],
        held_out=held_out,
        held_out_rows=splits.get("validation"),
        validation=validation,
        compiled=options.model.compile_layers is not None,
    )
    if trainer.is_world_process_zero():
        run.write("running")
        pq.write_table(learned.with_format("arrow")[:], run.path / PREFERENCES)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or run.checkpoint)
    finish(trainer, run, options, splits["train"], learned, validation)


def continue_training(vlm: VLM, options: PreferenceRun) -> None:
    """Make the adapter of a loaded run trainable."""
    vlm.model.set_adapter("default")  # it was loaded for inference
    trained, everything = vlm.model.get_nb_trainable_parameters()
    print(f"continuing the LoRA of {options.model.model}: {trained:,} of {everything:,} parameters are trained")


def make(options: PreferenceRun, rows: Dataset) -> Dataset:
    """The preferences of one split; prints their number."""
    calibration = MeasureCalibration.load(Path(options.data.data))
    made = make_preferences(rows, options.data.data, calibration, options.preferences, options.training.seed)
    if options.training.process_index == 0:
        described = ", ".join(f"{count} {fault}" for fault, count in counts_of(made).items())
        print(f"{len(made)} preferences of {len(rows)} rows: {described}")
    return made


def without_validation(options: PreferenceRun) -> None:
    """Set the flags so that validation is off and the last checkpoint is kept."""
    if options.training.early_stopping_patience is not None:
        raise UserError("--early_stopping_patience needs a validation split")
    options.training.eval_strategy = IntervalStrategy.NO
    options.training.do_eval = options.training.load_best_model_at_end = False


def finish(
    trainer: PreferenceTrainer,
    run: RunDirectory,
    options: PreferenceRun,
    rows: Dataset,
    learned: Dataset,
    validation: ValidationSet | None,
) -> None:
    """Leave adapter and processor, calibration and head, the card, and last the mark that all of it is there."""
    trainer.save_model(_internal_call=True)
    odds = trainer.validation_odds() if validation is not None else np.array([])
    if not trainer.is_world_process_zero():
        return
    trainer.save_state()
    scores: dict[str, float] = {}
    if validation is not None:
        scores = scores_of(odds, validation.generated)
        calibrated(odds, validation).save(run.path)
    head = None
    if can_fit_head(trainer, options.training):
        head = fit_at_end(trainer.vlm, run.path, rows, options.data.data, validation, odds)
    if measures := MeasureCalibration.load(Path(options.data.data)):
        measures.save(run.path)  # explanations of the run are checked against it
    history = trainer.state.log_history
    write_preference_card(run, adapter_base(run.path), counts_of(learned), history)
    title = f"Preferences: {run.path.name}"
    write_curves(run.path, history, title=title, command=" ".join(command_line()), loss_unit="a preference")
    run.write("finished", validation=scores | _last(history), head=head)
    if options.training.push_to_hub:
        publish(run.path, trainer.hub_model_id, options.training.hub_token)
    print(f"{run.path}: done. Try it: vlm-detect chat --model {run.path} IMAGE")


def _last(history: list[dict[str, float]]) -> dict[str, float]:
    """The preference metrics of the last evaluation."""
    names = {"eval_rewards/accuracies": "preferred", "eval_rewards/margins": "margin"}
    found = next((entry for entry in reversed(history) if "eval_rewards/margins" in entry), {})
    return {name: found[key] for key, name in names.items() if key in found}


def _first(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))
