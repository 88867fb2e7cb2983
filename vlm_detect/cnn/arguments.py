"""transformers' TrainingArguments with the defaults and checks of `CnnTrainOptions`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from vlm_detect.cnn.options import CnnTrainOptions


@dataclass
class CnnTrainArguments(CnnTrainOptions, TrainingArguments):
    """What the Trainer of a CNN is given. A class of a module, so that the Trainer can store it."""
