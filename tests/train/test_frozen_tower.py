"""Training with checkpointed layers leaves a frozen tower alone: nothing of it is traced, no state of it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import output_capturing

from tests.models.tiny_types import make_tiny_type
from tests.train.toys import toy_pairs
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.examples import Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.memory import family_of
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.trainer import DetectorTrainer


@pytest.mark.parametrize("model_type", ["internvl", "llava"])
def test_a_frozen_tower_is_neither_traced_nor_kept(model_type: str, tmp_path: Path) -> None:
    model, processor = make_tiny_type(model_type)
    vlm = family_of(model.config)(model, processor, model_type)
    add_lora(vlm, LoraOptions(lora_r=4))
    seen: list[Any] = []
    tower = next(part for name, part in vlm.model.named_modules() if name.endswith("vision_tower"))
    tower.register_forward_hook(lambda module, args, output: seen.append(output))
    flags = {"gradient_checkpointing": True, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    args = TrainArguments(
        output_dir=str(tmp_path), report_to="none", load_best_model_at_end=False, use_cpu=True, **flags
    )
    trainer = DetectorTrainer(vlm, args, Units(toy_pairs(1), QuestionOptions(questions_per_image=1)))
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
    assert trainer.state.log_history[0]["grad_norm"] > 0
    assert seen
    assert not any(output.last_hidden_state.requires_grad for output in seen)
    if hasattr(output_capturing, "selected_hidden_states") and model_type == "internvl":  # in newer transformers
        kept = [state for output in seen for state in output.hidden_states[:-1]]
        assert kept
        assert not any(isinstance(state, torch.Tensor) for state in kept)
