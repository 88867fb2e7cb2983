"""Progress of a run: one line per logging step, with speed, remaining time and peak memory; at least one a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_detect.machine import peak_process_bytes
from vlm_detect.progress import EVERY_S


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
        self.line_written = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.step_started = self.line_written = time.perf_counter()
        self.first_step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.training_s += now - self.step_started
        if state.is_world_process_zero and not control.should_log and now - self.line_written >= EVERY_S:
            print(f"{self.place(state)}  {self.pace(state)}", flush=True)
            self.line_written = now

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
        self.line_written = time.perf_counter()
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
        return (
            f"{self.place(state)}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.1e}  {self.pace(state)}  "
            f"{peak_memory()} peak"
        )

    def place(self, state: TrainerState) -> str:
        return f"step {state.global_step}/{state.max_steps} (epoch {state.epoch:.2f})"

    def pace(self, state: TrainerState) -> str:
        """The speeds and the remaining time."""
        done = state.global_step - self.first_step
        elapsed = time.perf_counter() - self.started
        left = timedelta(seconds=round(elapsed / max(done, 1) * (state.max_steps - state.global_step)))
        return f"{self.speeds()}  {left} left"

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
