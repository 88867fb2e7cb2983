"""transformers' TrainingArguments with the defaults and checks of `TrainOptions`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from vlm_detect.train.options import TrainOptions


@dataclass
class TrainArguments(TrainOptions, TrainingArguments):
    """What the Trainer of a VLM is given. A class of a module, so that the Trainer can store it."""
