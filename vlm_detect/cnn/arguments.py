"""transformers' TrainingArguments with the defaults and checks of `CnnTrainOptions`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from vlm_detect.cnn.options import CnnTrainOptions


@dataclass
class CnnTrainArguments(CnnTrainOptions, TrainingArguments):
    """The arguments of a CNN's Trainer. A module-level class, so that the Trainer can pickle it."""
