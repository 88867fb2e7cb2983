"""Failures from outside: out of memory, a full disk and rejected flags, each reported in one line with a remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments

from vlm_detect.errors import UserError
from vlm_detect.machine import is_out_of_memory
from vlm_detect.train.progress import peak_memory
from vlm_detect.train.run_directory import last_checkpoint

_FROM_WORKER = re.compile(r"(?:\w+: )?Caught \w+ in DataLoader worker process")


@contextmanager
def as_user_errors(trainer: Trainer, memory_remedies: Sequence[str] = ()) -> Iterator[None]:
    """Turns running out of memory or disk space into a `UserError`; other exceptions pass through.

    `memory_remedies` are flags that save memory, suggested in addition to a smaller batch.
    """
    args = trainer.args
    try:
        yield
    except UserError as error:
        if (said := _said_by_worker(error)) is None:
            raise
        raise UserError(said) from error
    except (RuntimeError, OSError, SafetensorError) as error:  # torch.OutOfMemoryError is a RuntimeError
        folder = str(args.output_dir)
        left = (
            f"{checkpoint} is intact" if (checkpoint := last_checkpoint(folder)) else "no checkpoint has been saved yet"
        )
        if is_out_of_memory(error):
            remedies = "".join(f", or {flag}" for flag in memory_remedies)
            raise UserError(
                f"step {trainer.state.global_step + 1} ran out of memory ({peak_memory()} peak): set "
                f"--per_device_train_batch_size below {args.per_device_train_batch_size} and raise "
                f"--gradient_accumulation_steps accordingly{remedies}; {left}"
            ) from error
        if is_full_disk(error):
            raise UserError(
                f"no space is left on the disk of {folder} (step {trainer.state.global_step}): free some and run "
                f"the same command again; {left}"
            ) from error
        raise


@contextmanager
def refused_flags(args: TrainingArguments, *names: str) -> Iterator[None]:
    """Turns an error of torch, transformers or a missing package about the values of these flags into a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, ArithmeticError, ImportError, RuntimeError) as error:
        values = args.to_dict()
        given = " ".join(f"--{name} {values[name]}" for name in names if values[name] is not None)
        raise UserError(f"{given}: {error}" if given else str(error)) from error


def _said_by_worker(error: UserError) -> str | None:
    """The message of an error in a DataLoader worker, which torch wraps in the worker's traceback."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if _FROM_WORKER.match(text) else None


def is_full_disk(error: Exception) -> bool:
    """Besides OSError: safetensors and torch's zip writer wrap the system's message in their own errors."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return True
    words = ("No space left", "PytorchStreamWriter failed writing", "unexpected pos")
    return any(part in str(error) for part in words)
