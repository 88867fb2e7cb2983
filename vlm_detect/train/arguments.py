"""transformers' TrainingArguments with the defaults and checks of `TrainOptions`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from vlm_detect.train.options import TrainOptions


@dataclass
class TrainArguments(TrainOptions, TrainingArguments):
    """The arguments of a VLM's Trainer. A module-level class, so that the Trainer can pickle it."""
