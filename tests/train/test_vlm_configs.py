"""The configs for published image-text models: read without complaint, and train a tiny model of the same type."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.models.tiny_types import save_tiny_type
from tests.models.try_type import RECORD, STEPS
from tests.train.toys import save_toy_pairs
from vlm_detect.train.command import Options
from vlm_detect.train.vlm import VlmOptions, VlmTraining, main

MODELS = {"internvl3_5_1b": "internvl", "qwen3_vl_2b": "qwen3_vl", "smolvlm2_2b": "smolvlm"}
TYPES = {f"{name}_{card}": kind for name, kind in MODELS.items() for card in ("lora_12gb", "qlora_8gb")}
HERE = ["--use_cpu", "True", "--cpu_threads", "1", "--report_to", "none", "--dataloader_num_workers", "0"]


@pytest.mark.parametrize(("config", "model_type"), TYPES.items())
def test_a_config_names_a_model_whose_type_works_and_packs(config: str, model_type: str) -> None:
    options = Options.parse(["--config", config, *HERE], doc="", training=VlmTraining, model=VlmOptions)
    assert options.model.model.count("/") == 1
    assert options.training.gradient_checkpointing
    assert options.questions.questions_per_image == 4
    (row,) = (row for row in json.loads(RECORD.read_text(encoding="utf-8")) if row["model_type"] == model_type)
    assert all(row[step] for step in STEPS)
    assert row["packs"], "each question reads the image again: 4 are too many"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "model_type"), [(f"{name}_lora_12gb", kind) for name, kind in MODELS.items()])
def test_a_config_trains_its_first_step(config: str, model_type: str, tmp_path: Path) -> None:
    model, data, run = (
        save_tiny_type(model_type, tmp_path / "model"),
        save_toy_pairs(tmp_path / "pairs"),
        tmp_path / "run",
    )
    given = ["--model", str(model), "--data", str(data), "--output_dir", str(run), "--max_steps", "1"]
    main(["--config", config, *given, *HERE])
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    (step,) = (entry for entry in history if "loss" in entry)
    assert math.isfinite(step["loss"])
    assert step["grad_norm"] > 0
