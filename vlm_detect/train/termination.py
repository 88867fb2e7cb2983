"""SIGTERM, which schedulers send before preemption: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveOnTermination(TrainerCallback):
    """During training, SIGTERM requests a checkpoint after the current step; `received` is True afterwards.

    All processes stop after the same step, even if only one got the signal.
    """

    def __init__(self) -> None:
        self.received = False
        self._noted = False  # in this process, possibly while it communicates with the others
        self._before: Any = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True

    def _noted_anywhere(self, args: TrainingArguments) -> bool:
        """Agreed among all processes, as the signal may reach one a step earlier than another."""
        if args.world_size == 1:
            return self._noted
        anyone = torch.tensor(int(self._noted), device=args.device)
        torch.distributed.all_reduce(anyone, torch.distributed.ReduceOp.MAX)
        return bool(anyone)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only in the main thread
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.received = self._noted_anywhere(args)
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        # Also for a signal during the last validation; and no process exits (torchrun then kills the others) before the
        # checkpoint is complete.
        self.received = self._noted_anywhere(args)
