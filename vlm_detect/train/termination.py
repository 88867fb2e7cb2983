"""SIGTERM, as a scheduler sends it before it takes the machine away: finish the step, save a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveOnTermination(TrainerCallback):
    """While training runs, SIGTERM asks for a checkpoint after the present step; `received` tells that it came.

    Of several processes all stop after the same step, whichever it came to.
    """

    def __init__(self) -> None:
        self.received = False
        self._noted = False  # by this process, perhaps while it is asking the others
        self._before: Any = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._noted = True

    def _noted_anywhere(self, args: TrainingArguments) -> bool:
        """The same in all processes, though the signal may come to one a step before it comes to another."""
        if args.world_size == 1:
            return self._noted
        anyone = torch.tensor(int(self._noted), device=args.device)
        torch.distributed.all_reduce(anyone, torch.distributed.ReduceOp.MAX)
        return bool(anyone)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
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
        # Also for a signal during the last validation; and none leaves, at which torchrun ends the others, before the
        # checkpoint is whole.
        self.received = self._noted_anywhere(args)
