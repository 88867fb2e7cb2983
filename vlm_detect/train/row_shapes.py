"""The shapes of a training's rows: some lengths are fast on a GPU, and a compiled layer is compiled for each shape."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlm_detect.machine import row_multiple


@dataclass(frozen=True)
class RowLengths:
    """Lengths of rows: multiples of `multiple` tokens; with `few`, for compiled layers, also few of them."""

    multiple: int = 1
    few: bool = False

    @classmethod
    def of(cls, device: torch.device, *, compiled: bool) -> RowLengths:
        return cls(row_multiple(device), few=compiled)

    def multiple_for(self, longest: int, budget: int | None = None) -> int:
        """The multiple to which rows are padded whose longest has `longest` tokens.

        Few lengths are that of a full row where rows are packed into a `budget`, else four in each octave, which add a
        fifth of a row at most.
        """
        if not self.few:
            return self.multiple
        if budget is not None:
            return -(-budget // self.multiple) * self.multiple
        return max(self.multiple, 2 ** (longest.bit_length() - 1) // 4)


class RowShapes(TrainerCallback):
    """Counts the shapes of a training's rows, and says their number at its end if layers are compiled."""

    def __init__(self, *, compiled: bool) -> None:
        self.compiled = compiled
        self.seen: set[tuple[int, ...]] = set()  # (B, S)

    def add(self, batch: Mapping[str, Any]) -> None:
        self.seen.add(tuple(batch["ids"].shape))

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Without compiled layers: for what has shapes of its own, seen a few times each (validation, for one)."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.compiled and state.is_world_process_zero:
            print(f"compiled layers: {len(self.seen)} shapes of rows")
