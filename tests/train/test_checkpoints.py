"""A run goes on from a checkpoint that is what was written, and from no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.factories import tiny_vlm
from tests.train.test_failures import make_trainer
from tests.train.toys import save_tiny_model, save_toy_pairs, toy_pairs
from vlm_detect.checksums import CHECKSUMS
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.model import new_model
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.run_checksums import check_run_files, checksums_of_run
from vlm_detect.train.checkpoints import checkpoint_damage, find_checkpoint, has_model_only
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import SCORES, LoraOptions
from vlm_detect.train.run_directory import RunDirectory
from vlm_detect.train.validation import ValidationSet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, of whose three checkpoints the last two are kept."""
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(folder).train()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(file: Path, at: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    file.write_bytes(data)


def test_every_file_of_a_checkpoint_has_its_checksum(run: Path) -> None:
    for step in (4, 6):
        checkpoint = run / f"checkpoint-{step}"
        listed = json.loads((checkpoint / CHECKSUMS).read_text())
        there = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        assert there - {CHECKSUMS} == set(listed)
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(listed)
    assert find_checkpoint(run).path == run / "checkpoint-6"
    assert find_checkpoint(run).damaged == ()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["a byte in the middle", "the last byte", "cut", "emptied", "missing"])
def test_a_damaged_checkpoint_is_reported_and_the_last_complete_one_is_used(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoint-6" / name
    match damage:
        case "a byte in the middle":
            flip(file)
        case "the last byte":
            flip(file, -1)
        case "cut":
            os.truncate(file, file.stat().st_size - 1)
        case "emptied":
            file.write_bytes(b"")
        case _:
            file.unlink()
    RunDirectory(run, {}, {}, False, None).write("running")
    opened = RunDirectory.open(run, [])
    assert opened.checkpoint == str(run / "checkpoint-4")
    printed = capsys.readouterr().err
    said = "is missing" if damage == "missing" else "is not what was written"
    assert f"checkpoint-6: {name} {said}): continuing from {run / 'checkpoint-4'}" in printed


def test_without_a_complete_checkpoint_the_run_restarts_and_reports_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 6):
        flip(run / f"checkpoint-{step}" / "optimizer.pt")
    RunDirectory(run, {}, {}, False, None).write("running")
    assert RunDirectory.open(run, []).checkpoint is None
    assert "from the beginning, as there is no other complete checkpoint" in capsys.readouterr().err


def test_damaged_checksums_count_as_damage(run: Path) -> None:
    for text in ("", "{", "[]", '{"a": 1'):
        (run / "checkpoint-6" / CHECKSUMS).write_text(text)
        assert find_checkpoint(run).path == run / "checkpoint-4"


def test_resuming_from_an_older_checkpoint_equals_an_uninterrupted_run(run: Path, trained: Path) -> None:
    flip(run / "checkpoint-6" / "optimizer.pt")
    trainer = make_trainer(run)
    trainer.train(resume_from_checkpoint=str(find_checkpoint(run).path))
    weights = [load_file(folder / "checkpoint-6" / "adapter_model.safetensors") for folder in (trained, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert find_checkpoint(run).path == run / "checkpoint-6"


def test_a_checkpoint_whose_best_is_damaged_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path, ValidationSet.from_rows(toy_pairs(2)), **flags)

    def best_at_four(**options: object) -> dict[str, float]:
        return trainer.publish_scores(dict.fromkeys(SCORES, float(trainer.state.global_step == 4)), 1, 0.0, "eval")

    monkeypatch.setattr(trainer, "evaluate", best_at_four)
    trainer.train()
    newest, best = tmp_path / "checkpoint-6", tmp_path / "checkpoint-4"
    assert checkpoint_damage(newest) is None
    flip(best / "adapter_model.safetensors")
    said = "adapter_model.safetensors is not what was written"
    assert checkpoint_damage(newest) == f"of checkpoint-4, its best so far, {said}"
    assert find_checkpoint(tmp_path).path is None
    shutil.rmtree(best)
    assert checkpoint_damage(newest) == "of checkpoint-4, its best so far, it does not exist"


def test_a_run_that_has_moved_finds_its_best_checkpoint(tmp_path: Path) -> None:
    flags = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    validation = ValidationSet.from_rows(toy_pairs(2))
    make_trainer(tmp_path / "old", validation, max_steps=4, **flags).train()
    (tmp_path / "old").rename(tmp_path / "new")
    resumed = make_trainer(tmp_path / "new", validation, **flags)
    found = find_checkpoint(tmp_path / "new")
    assert found.path == tmp_path / "new" / "checkpoint-4"
    resumed.train(resume_from_checkpoint=str(found.path))
    assert Path(str(resumed.state.best_model_checkpoint)).parent == tmp_path / "new"


# The model alone


def test_a_checkpoint_of_the_model_alone_is_refused(tmp_path: Path) -> None:
    RunDirectory(tmp_path, {"save_only_model": True}, {}, False, None).write("running")
    make_trainer(tmp_path, save_only_model=True).train()
    assert has_model_only(tmp_path / "checkpoint-6")
    with pytest.raises(UserError, match=r"checkpoint-6 contains only the model \(--save_only_model\)"):
        RunDirectory.open(tmp_path, [])


# What is finished


@pytest.fixture
def finished(run: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(run / "checkpoint-6" / name, run)
    RunDirectory(run, {}, {}, False, None).write("finished")
    return run


def test_run_json_detects_an_altered_adapter(finished: Path, tmp_path: Path) -> None:
    base = str(save_tiny_model(tmp_path / "base"))
    load_vlm(base, adapter=finished, device="cpu")
    weights, config = finished / "adapter_model.safetensors", finished / "adapter_config.json"
    whole = weights.read_bytes(), config.read_text()

    flip(weights)
    with pytest.raises(UserError, match=r"adapter_model.safetensors has changed since the run finished"):
        load_vlm(base, adapter=finished, device="cpu")
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors is missing"):
        load_vlm(base, adapter=finished, device="cpu")
    weights.write_bytes(whole[0])

    config.write_text(json.dumps(json.loads(whole[1]) | {"lora_alpha": 999}))
    with pytest.raises(UserError, match=r"adapter_config.json has changed since the run finished"):
        load_vlm(base, adapter=finished, device="cpu")
    config.write_text(json.dumps(json.loads(whole[1]) | {"base_model_name_or_path": base}))  # it has moved
    load_vlm(str(finished), device="cpu")


def test_files_fitted_later_are_no_alteration(finished: Path) -> None:
    for name in ("calibration.json", "head.safetensors", "README.md"):
        (finished / name).write_text("{}")
    check_run_files(finished)
    assert set(checksums_of_run(finished)) == {"adapter_model.safetensors", "adapter_config.json"}


def test_an_altered_network_is_reported(tmp_path: Path) -> None:
    config = CnnConfig(arch="fakenet2", image_size=32, heads={"verdict": ["real", "generated"]})
    new_model(config).save_pretrained(tmp_path)
    RunDirectory(tmp_path, {}, {}, False, None).write("finished")
    CnnDetector.load(tmp_path)
    flip(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors has changed since the run finished"):
        CnnDetector.load(tmp_path)


def test_runs_of_earlier_versions_and_foreign_folders_are_accepted(tmp_path: Path) -> None:
    check_run_files(tmp_path)
    for record in ({"status": "finished"}, {"status": "running", "files": {"x": "0"}}, {"files": {"x": "0"}}):
        (tmp_path / "run.json").write_text(json.dumps(record))
        check_run_files(tmp_path)


def test_the_targets_of_a_lora_are_written_in_one_order(tmp_path: Path) -> None:
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions())
    vlm.model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(written)
    assert len(written) > 5


@pytest.mark.slow
def test_two_equal_runs_write_equal_files(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_toy_pairs(tmp_path / "pairs", n_train=6, n_validation=2)
    flags = ["--model", "model", "--data", "pairs", "--max_steps", "3", "--report_to", "none", "--cpu_threads", "1"]
    for seed in ("1", "2"):
        ask = [sys.executable, "-m", "vlm_detect", "train", "moondream", *flags, "--output_dir", f"run{seed}"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run(ask, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "calibration.json"):
        assert (tmp_path / "run1" / name).read_bytes() == (tmp_path / "run2" / name).read_bytes(), name


@pytest.mark.parametrize("moment", ["resumed", "best"])
def test_a_checkpoint_is_loaded_whole_where_peft_misses_weights(
    moment: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(find_checkpoint(trained).path)
    monkeypatch.setattr(PeftModel, "load_adapter", lambda *args, **options: None)
    trainer = make_trainer(tmp_path)
    if moment == "resumed":
        trainer.train(resume_from_checkpoint=checkpoint)  # no step is left
    else:
        trainer.args.load_best_model_at_end, trainer.state.best_model_checkpoint = True, checkpoint
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    stored, weights = load_file(f"{checkpoint}/adapter_model.safetensors"), trainer.model.state_dict()
    assert stored
    for name, tensor in stored.items():
        prefix, _, end = name.rpartition(".")
        assert torch.equal(weights[f"{prefix}.default.{end}"], tensor), name
