"""What ends a run is reported in one line, and the next run continues from the last complete checkpoint."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerControl, TrainerState

from tests.factories import tiny_vlm
from tests.models.tiny_chat import save_tiny
from tests.train.toys import save_tiny_model, toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.models.registry import load_vlm
from vlm_detect.train import trainer as trainer_module
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.examples import Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import SCORES, LoraOptions, QuestionOptions
from vlm_detect.train.program import publish
from vlm_detect.train.run_directory import RunDirectory, last_checkpoint
from vlm_detect.train.termination import SaveOnTermination
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.tuning import train_language_model
from vlm_detect.train.validation import ValidationSet, scores_of


def make_trainer(folder, validation=None, **changes):
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions())
    settings = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    settings |= {"load_best_model_at_end": False, "max_steps": 6, "report_to": "none", "use_cpu": True}
    return DetectorTrainer(vlm, TrainArguments(output_dir=str(folder), **settings | changes), units(), validation)


def units():
    return Units(toy_pairs(8), QuestionOptions())


def fails_at(step, error, monkeypatch):
    plain, calls = trainer_module.answer_loss, []

    def answer_loss(*args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "answer_loss", answer_loss)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory(tmp_path, monkeypatch, error):
    fails_at(4, error, monkeypatch)
    with pytest.raises(UserError, match=r"step 4 ran out of memory .*gradient_checkpointing.*checkpoint-2 is intact"):
        make_trainer(tmp_path).train()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optim": "galore_adamw"}, "--optim galore_adamw: You need to install `galore_torch`"),
        ({"optim_args": "half"}, "--optim_args half: "),
        ({"adam_beta1": 3.0}, "Invalid beta parameter"),
        ({"lr_scheduler_kwargs": {"speed": 1}}, "--lr_scheduler_kwargs .*speed"),
        ({"report_to": "nowhere"}, "nowhere is not supported, only"),
        ({"fsdp": True}, "fsdp only works in distributed training"),
    ],
)
def test_a_flag_that_is_refused_once_the_trainer_is_set_up(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, **flags).train()


def test_a_repository_that_cannot_be_created(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", refuse)
    with pytest.raises(UserError, match=r"--push_to_hub: cannot create the repository me/mine .*401"):
        make_trainer(tmp_path, push_to_hub=True, hub_token="x", hub_model_id="me/mine")


def test_a_failed_upload_keeps_the_run_and_says_how_to_continue(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_detect.train.program.upload_folder", refuse)
    with pytest.raises(UserError, match=r"the run is finished .*hf upload me/mine .* --exclude"):
        publish(tmp_path, "me/mine", None)


def refuse(*args, **options):
    raise ConnectionError("401 Unauthorized")


def test_other_settings_start_again_if_nothing_was_trained_yet(tmp_path):
    RunDirectory.open(tmp_path, [LoraOptions()], model="nano").write("running")
    assert not RunDirectory.open(tmp_path, [LoraOptions(lora_r=4)], model="nano").finished
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match="lora_r 16 -> 4"):
        RunDirectory.open(tmp_path, [LoraOptions(lora_r=4)], model="nano")


def test_a_run_resumes_with_the_same_number_of_processes(tmp_path):
    """With others a step has other units: those of an epoch would be passed over, or come again."""
    RunDirectory.open(tmp_path, [LoraOptions()], processes=2).write("running")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert RunDirectory.open(tmp_path, [LoraOptions()], processes=2).checkpoint
    with pytest.raises(UserError, match="processes 2 -> 1"):
        RunDirectory.open(tmp_path, [LoraOptions()], processes=1)
    RunDirectory.open(tmp_path, [LoraOptions()], processes=2).write("finished")
    assert RunDirectory.open(tmp_path, [LoraOptions()], processes=1).finished


def test_another_error_passes_through(tmp_path, monkeypatch):
    fails_at(1, RuntimeError("a fault of ours"), monkeypatch)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        make_trainer(tmp_path).train()


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), marks=pytest.mark.slow),
        pytest.param(
            RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_keeps_the_last_complete_checkpoint(tmp_path, error, monkeypatch):
    trainer = make_trainer(tmp_path)
    save = torch.save

    def save_until_the_disk_is_full(held, path, *args, **options):
        if Path(path).name == "rng_state.pth" and Path(path).parent.name == "checkpoint-4":
            raise error
        save(held, path, *args, **options)

    with monkeypatch.context() as full:
        full.setattr(torch, "save", save_until_the_disk_is_full)
        with pytest.raises(UserError, match=r"no space is left on the disk .*step 4.*checkpoint-2 is intact"):
            trainer.train()
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    make_trainer(tmp_path).train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_resuming_keeps_the_patience_of_early_stopping(tmp_path, monkeypatch):
    def trainer():
        flags = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
        flags |= {"early_stopping_patience": 3, "max_steps": 8}
        made = make_trainer(tmp_path, ValidationSet.from_rows(toy_pairs(2)), **flags)

        def worse(**options):
            scores = dict.fromkeys(SCORES, 1 / made.state.global_step)
            return made.publish_scores(scores, 1, 0.0, "eval")

        monkeypatch.setattr(made, "evaluate", worse)
        return made

    fails_at(4, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trainer().train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.global_step == 4


def test_non_finite_scores_end_the_run_in_one_line():
    with pytest.raises(UserError, match=r"1 of 3 validation images .* diverged"):
        scores_of(np.array([0.5, np.nan, -1.0]), np.array([True, True, False]))


def test_a_termination_during_communication_is_not_lost(monkeypatch):
    """On a GPU that is most of the time: the question waits for the step's work."""
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    termination, during = SaveOnTermination(), [True, False]

    def all_reduce(tensor, op):
        if during.pop(0):
            termination._note(signal.SIGTERM, None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stopped = []
    for _ in range(2):
        control = TrainerControl()
        termination.on_step_end(args, TrainerState(), control)
        stopped.append(control.should_training_stop and control.should_save)
    assert stopped == [False, True]  # not at once, as the other processes do not know of it yet


def test_a_termination_during_the_last_validation_is_known_to_all(monkeypatch):
    termination = SaveOnTermination()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.fill_(1))  # the other's
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    termination.on_train_end(args, TrainerState(), TrainerControl())
    assert termination.received


def test_one_process_alone_writes_a_checkpoint(tmp_path, monkeypatch):
    """Several would write the same files at once, and with FSDP all but one have no weights to write."""
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(TrainArguments, "should_save", False)
    trainer.save_model(str(tmp_path / "checkpoint-2"), _internal_call=True)
    assert not (tmp_path / "checkpoint-2").exists()


def test_weights_have_the_usual_file_permissions(tmp_path):
    make_trainer(tmp_path).save_model(str(tmp_path / "run"))
    weights, any_file = tmp_path / "run" / "adapter_model.safetensors", tmp_path / "any"
    any_file.touch()
    assert weights.stat().st_mode == any_file.stat().st_mode


@pytest.mark.parametrize(
    "name", ["moondream", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llava", "qwen2_5_vl"))]
)
def test_full_tuning_resumes_with_every_weight_of_its_checkpoint(tmp_path, name):
    """Whose names in the files of these models are not those of their modules."""
    model = save_tiny_model(tmp_path / "model") if name == "moondream" else save_tiny(name, tmp_path / "model")
    settings = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    settings |= {"load_best_model_at_end": False, "max_steps": 2, "report_to": "none", "use_cpu": True}
    trained = []
    for checkpoint in (None, tmp_path / "run" / "checkpoint-2"):
        vlm = load_vlm(str(model), device="cpu")
        train_language_model(vlm)
        trainer = DetectorTrainer(vlm, TrainArguments(output_dir=str(tmp_path / "run"), **settings), units())
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trained.append(vlm.model.state_dict())
    base = load_vlm(str(model), device="cpu").model.state_dict()
    assert sum(not torch.equal(base[key], tensor) for key, tensor in trained[0].items()) > 5
    assert not [key for key, tensor in trained[0].items() if not torch.equal(trained[1][key], tensor)]
    checkpoint = load_vlm(str(tmp_path / "run" / "checkpoint-2"), device="cpu").model.state_dict()
    assert not [key for key, tensor in trained[0].items() if not torch.equal(checkpoint[key], tensor)]


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "nothing") is None


def test_a_non_finite_loss_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    plain, calls = trainer_module.answer_loss, []

    def answer_loss(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs) * (torch.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(trainer_module, "answer_loss", answer_loss)
    with pytest.raises(UserError, match=r"the loss of step 4 is nan.*checkpoint is intact"):
        make_trainer(tmp_path).train()
    state = json.loads((Path(last_checkpoint(tmp_path)) / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_a_non_finite_loss_is_found_before_a_checkpoint_even_if_it_is_not_logged(tmp_path, monkeypatch):
    plain, calls = trainer_module.answer_loss, []

    def answer_loss(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(trainer_module, "answer_loss", answer_loss)
    with pytest.raises(UserError, match=r"the loss of the steps up to 4 is nan.*checkpoint is intact"):
        make_trainer(tmp_path, logging_steps=100).train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
