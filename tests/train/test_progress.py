"""The lines of a training between its logging steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from vlm_detect.train import progress as module
from vlm_detect.train.progress import Counts, Progress


@pytest.mark.parametrize(("every_s", "lines"), [(0.0, 2), (3600.0, 0)])
def test_a_line_is_written_between_logging_steps_if_enough_time_has_passed(
    every_s: float, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "EVERY_S", every_s)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(max_steps=10, epoch=0.0, is_world_process_zero=True), TrainerControl()
    progress = Progress(Counts())
    progress.on_train_begin(args, state, control)
    for step in (1, 2, 3):
        state.global_step = step
        control.should_log = step == 3  # whose line has the loss
        progress.on_step_begin(args, state, control)
        progress.on_step_end(args, state, control)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in said] == ["step 1/10", "step 2/10"][:lines]
    assert all(line.endswith(" left") for line in said)
