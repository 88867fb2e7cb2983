"""Progress of a run: one line per logging step, with speed, remaining time and peak memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_detect.machine import peak_process_bytes


@dataclass
class Counts:
    """Counts of the training data of this process since it started."""

    images: int = 0
    questions: int = 0
    tokens: int = 0  # excluding image prefixes

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch of `Collator`."""
        self.images += batch["n_images"]
        self.questions += batch["n_questions"]
        self.tokens += batch["n_tokens"]


class Progress(TrainerCallback):
    """Prints the logged loss and the validation scores; speeds are of this process since it started.

    Time spent on validation and checkpoints counts in the remaining time but not in the speeds.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.started = self.step_started = 0.0
        self.training_s = 0.0
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.step_started = time.perf_counter()
        self.first_step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.training_s += time.perf_counter() - self.step_started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            print(self.step_line(state, logs), flush=True)
        elif "eval_score" in logs:
            print(f"validation after epoch {state.epoch:.2f}: {self.scores_line(logs)}", flush=True)

    def scores_line(self, logs: dict[str, Any]) -> str:
        return (
            f"AUROC {logs['eval_auroc']:.3f}, balanced accuracy {logs['eval_balanced_accuracy']:.3f} on "
            f"{logs['eval_images']} images"
        )

    def step_line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        done = state.global_step - self.first_step
        elapsed = time.perf_counter() - self.started
        left = timedelta(seconds=round(elapsed / max(done, 1) * (state.max_steps - state.global_step)))
        return (
            f"step {state.global_step}/{state.max_steps} (epoch {state.epoch:.2f})  loss {logs['loss']:.4f}  "
            f"lr {logs['learning_rate']:.1e}  {self.speeds()}  {left} left  {peak_memory()} peak"
        )

    def speeds(self) -> str:
        speed = max(self.training_s, 1e-9)
        return (
            f"{self.counts.images / speed:.1f} images/s  {self.counts.questions / speed:.1f} questions/s  "
            f"{self.counts.tokens / speed:.0f} tokens/s"
        )


def peak_memory() -> str:
    """Peak memory so far, in GB (10^9 bytes), as words: of a CUDA device if there is one, else of the process."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_process_bytes()
    return "unknown" if peak is None else f"{peak / 1e9:.1f} GB"
