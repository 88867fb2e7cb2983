"""A run's checkpoints: written with checksums when complete, and found again to resume from.

    trainer.add_callback(WriteChecksums())
    found = find_checkpoint("runs/moondream_lora")     # .path, and .damaged: what was skipped and why

A checkpoint is complete if its trainer state, which the Trainer writes last, is complete, its files match their
checksums, and so do those of the best checkpoint so far, which is loaded at the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from vlm_detect.checksums import damage_of, write_checksums
from vlm_detect.models.lora_weights import set_weights

# An optimiser as one file, FSDP's full or sharded one, DeepSpeed's.
_OPTIMIZERS = (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, f"{OPTIMIZER_NAME_BIN.split('.')[0]}_*", "global_step*")


@dataclass(frozen=True)
class FoundCheckpoint:
    """`path` is None if there is no checkpoint to resume from; `damaged` has a sentence for each newer one."""

    path: Path | None
    damaged: tuple[str, ...] = ()


class WriteChecksums(TrainerCallback):
    """Writes the checksums of a checkpoint after every process has written its part."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()
        if args.should_save:
            write_checksums(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


class FindBest(TrainerCallback):
    """Lets a run that resumes in a moved folder find its best checkpoint at the new path."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (best := state.best_model_checkpoint) and (here := _best_of(Path(str(args.output_dir)), best)).is_dir():
            state.best_model_checkpoint = str(here)


class LoadWhole(TrainerCallback):
    """Loads what peft misses (`models/lora_weights.py`) of the checkpoint that a run resumes from, and of the best."""

    resumed: str | None = None  # until its weights are loaded

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint, self.resumed = self.resumed, None
        if checkpoint and isinstance(kwargs["model"], PeftModel):
            set_weights(kwargs["model"], checkpoint)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best and isinstance(kwargs["model"], PeftModel):
            set_weights(kwargs["model"], best)


def find_checkpoint(run: str | Path) -> FoundCheckpoint:
    """The newest complete checkpoint of a run. An interrupted save does not count as damage and is skipped."""
    folders: dict[int, Path] = {}
    for folder in Path(run).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.rpartition("-")[2]
        if step.isdigit() and trainer_state(folder) is not None:
            folders[int(step)] = folder
    damaged: list[str] = []
    for _, folder in sorted(folders.items(), reverse=True):
        if (damage := checkpoint_damage(folder)) is None:
            return FoundCheckpoint(folder, tuple(damaged))
        damaged.append(f"{folder}: {damage}")
    return FoundCheckpoint(None, tuple(damaged))


def checkpoint_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None where it is complete."""
    state = trainer_state(checkpoint)
    if state is None:
        return "its saving was interrupted"
    if damage := damage_of(checkpoint):
        return damage
    best = state.get("best_model_checkpoint")
    if best and (here := _best_of(checkpoint.parent, best)) != checkpoint:
        damage = damage_of(here) if here.is_dir() else "it does not exist"
        return f"of {here.name}, its best so far, {damage}" if damage else None
    return None


def has_model_only(checkpoint: Path) -> bool:
    """Whether a checkpoint lacks the training state, as with --save_only_model, so that training cannot resume."""
    return any(checkpoint.glob("*.safetensors")) and not any(any(checkpoint.glob(name)) for name in _OPTIMIZERS)


def trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state that the Trainer writes last into a checkpoint; None where it is missing or truncated."""
    try:
        found = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _best_of(run: Path, recorded: str) -> Path:
    """The best checkpoint, recorded under its former path, in the run's current folder."""
    return run / Path(recorded.replace("\\", "/")).name
