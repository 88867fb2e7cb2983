"""Image-text types of transformers on tiny models: eight families in every run, all of them in the slow one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.models.tiny_types import TYPES, save_tiny_type
from tests.models.try_type import COLUMNS, DOCS, END, RECORD, START, STEPS, photo, table, try_type
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.models.registry import load_vlm

# transformers' PaliGemmaProcessor makes arrays of tensors in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SAMPLE = (
    "aya_vision",
    "cosmos3_edge",
    "gemma3",
    "glm46v",
    "internvl",
    "llava_onevision",
    "qwen3_vl",
    "smolvlm",
)


def recorded() -> dict[str, dict]:
    return {row["model_type"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_of_families_works(model_type: str, tmp_path: Path) -> None:
    found = try_type(model_type, tmp_path)
    assert all(found[step] for step in STEPS), found["reason"]


@pytest.mark.parametrize("model_type", ["deepseek_vl_hybrid", "lfm3_vl"])
def test_a_tower_that_does_not_round_its_pixels_runs_in_bfloat16(model_type: str, tmp_path: Path) -> None:
    folder = str(save_tiny_type(model_type, tmp_path))
    asks = [[Ask("Is it AI?", ("Yes.",))]]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        (((score,),),) = Engine(load_vlm(folder, device="cpu", dtype=dtype)).score([photo()], asks)
        found.append(score.logprob)
    assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_type_does_what_its_record_says(model_type: str, tmp_path: Path) -> None:
    before = recorded()[model_type]
    if before["reason"].startswith("not done"):
        pytest.skip(before["reason"])
    found = try_type(model_type, tmp_path)
    assert {name: found[name] for name in COLUMNS} == {name: before[name] for name in COLUMNS}, found["reason"]


def test_the_record_has_every_type_and_a_reason_for_what_fails() -> None:
    rows = recorded()
    assert set(rows) == set(TYPES)
    for name, row in rows.items():
        assert bool(row["reason"]) != all(row[step] for step in STEPS), name


def test_the_docs_have_the_table_of_the_record() -> None:
    shown = DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert shown.strip() == table(json.loads(RECORD.read_text(encoding="utf-8")))
