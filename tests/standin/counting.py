"""What micro-steps of training cost on the stand-in device, counted in the Trainer's own loop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.standin.device import Counts, counted
from tests.train.toys import toy_pairs
from vlm_detect.models.base import VLM
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.trainer import DetectorTrainer

MICRO_STEPS = 4  # that are counted; as many come before


def micro_steps(vlm: VLM, *, cached: bool, pack: bool = True, autocast: str | None = None) -> Counts:
    """Of `MICRO_STEPS` micro-steps in the middle of a run, two to a step of the optimiser; nothing is logged."""
    with tempfile.TemporaryDirectory() as folder:
        vlm.model.to("cuda")
        add_lora(vlm, LoraOptions())
        args = TrainArguments(
            output_dir=folder,
            report_to="none",
            autocast=autocast,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=1,
            logging_steps=1000,
            logging_first_step=False,
            save_strategy="no",
            eval_strategy="no",
            load_best_model_at_end=False,
        )
        units = Units(toy_pairs(4 * MICRO_STEPS), QuestionOptions(questions_per_image=2))
        features = Features.build(vlm, units.images, Path(folder)) if cached else None
        trainer = DetectorTrainer(vlm, args, units, pack=pack, features=features)
        return _middle(trainer)


def _middle(trainer: DetectorTrainer) -> Counts:
    """Counts from the end of the optimiser's second step to that of its fourth."""
    found = Counts()
    block: Any = None
    progress = trainer.progress
    plain = progress.on_step_end

    def on_step_end(args: Any, state: Any, control: Any, **options: Any) -> None:
        nonlocal found, block
        plain(args, state, control, **options)
        if state.global_step == 2:
            block = counted()
            found = block.__enter__()
        elif state.global_step == 2 + MICRO_STEPS // 2:
            block.__exit__(None, None, None)

    progress.on_step_end = on_step_end  # type: ignore[method-assign]
    trainer.train()
    return found
