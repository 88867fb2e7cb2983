"""SIGTERM, as a scheduler sends it before it takes the machine away: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveOnTermination(TrainerCallback):
    """While training runs, SIGTERM asks for a checkpoint after the present step; `received` tells that it came."""

    def __init__(self) -> None:
        self.received = False
        self._before: Any = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
