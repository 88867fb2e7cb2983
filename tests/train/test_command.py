"""A flag's wrong value is one line before anything is loaded, whether argparse, transformers or we refuse it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from vlm_detect.errors import UserError
from vlm_detect.train import command
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.command import Options, each_seed, spread
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.trainer_flags import trainer_flags


def test_a_missing_liger_kernel_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    options = parse(tmp_path / "run", "--use_liger_kernel", "True")
    with pytest.raises(UserError, match="--use_liger_kernel: liger-kernel is not installed; run: pip install"):
        each_seed(options, lambda given: pytest.fail("it was begun"))
    assert not (tmp_path / "run").exists()


def parse(folder, *flags):
    argv = ["--model", "nano", "--output_dir", str(folder), "--use_cpu", "True", "--report_to", "none", *flags]
    return Options.parse(argv, doc=None, training=TrainOptions)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--optim nonsense", "--optim: nonsense: choose from adamw_torch,"),
        ("--eval_strategy sometimes", "--eval_strategy: sometimes: choose from no, steps, epoch"),
        ("--save_strategy never", "--save_strategy: never: choose from no, "),
        ("--lr_scheduler_type x", "x is not a valid SchedulerType, please select one of ['linear', 'cosine'"),
        ("--learning_rate abc", "invalid float value: 'abc'"),
        ("--learning_rate -1", "--learning_rate -1.0: give 0 or more"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: give 1 or more"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: give 1 or more"),
        ("--num_train_epochs 0", "--num_train_epochs 0: give more than 0"),
        ("--fsdp shards", "Unknown `fsdp` option: shards"),
        ("--fsdp_config {half", "--fsdp_config {half: not JSON"),
        ("--warmup_steps -1", "warmup_steps >= 0"),
        ("--save_strategy no", "--load_best_model_at_end requires the save and eval strategy to match"),
        ("--label_smoothing_factor 2", "--label_smoothing_factor 2.0: give a fraction from 0"),
        ("--train_sampling_strategy sequential", "omit it"),
        ("--dtype float8", "--dtype: float8: choose from auto, float32, bfloat16, float16"),
        ("--quantize int3", "--quantize: int3: choose from nf4, int8"),
        ("--attention magic", "--attention: magic: choose from sdpa"),
        ("--tune some", "--tune: some: choose from lora, full"),
        ("--tune full --quantize nf4", "omit --quantize"),
        ("--lora_targets brain", "--lora_targets brain: unknown brain; choose from attention"),
        ("--question_kinds yes_no riddle", "--question_kinds riddle: no such question; known are"),
        ("--augment mixup", "--augment mixup: unknown; choose from flip"),
        ("--metric_for_best_model nonsense", "--metric_for_best_model nonsense: choose from score, auroc"),
        ("--epochs 3", "--epochs: no such flag; did you mean --num_train_epochs?"),
        ("--warmup_ratio 0.1", "--warmup_ratio: use --warmup_steps (transformers 5); a value below 1 is a fraction"),
        ("--lora_r 0", "--lora_r 0: give 1 or more"),
        ("--lora_dropout 1", "--lora_dropout 1.0: give a fraction"),
        ("--questions_per_image 0", "--questions_per_image 0: give 1 or more"),
        ("--limit 0", "--limit 0: give 1 or more"),
        ("--weights 1 2", "needs --mix with the other datasets"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        parse(tmp_path, *flags.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_best_model_is_chosen_by_an_existing_score(tmp_path):
    assert parse(tmp_path, "--metric_for_best_model", "auroc").training.greater_is_better


def test_without_a_token_nothing_can_be_pushed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit):
        parse(tmp_path, "--push_to_hub", "True")
    assert "--push_to_hub needs a token" in capsys.readouterr().err


def test_runs_of_several_seeds_share_neither_a_folder_nor_a_repository(tmp_path):
    for flags, name in ([], "folder"), (["--hub_model_id", "me/mine"], "me/mine"):
        runs = [parse(tmp_path / "folder", *flags).with_seed(seed).training for seed in (0, 1)]
        assert [run.output_dir for run in runs] == [str(tmp_path / "folder" / f"seed_{seed}") for seed in (0, 1)]
        assert [run.hub_model_id for run in runs] == [f"{name}-seed_{seed}" for seed in (0, 1)]


def test_fsdp_true_is_not_an_old_option(tmp_path):
    assert parse(tmp_path, "--fsdp", "True").training.fsdp is True
    assert not parse(tmp_path, "--fsdp", "False").training.fsdp


def test_help_lists_the_flags_of_the_trainer():
    listed = {flag.name for flag in trainer_flags()}
    assert listed == {field.name for field in fields(TrainingArguments) if field.init}
    by_name = {flag.name: flag for flag in trainer_flags()}
    assert by_name["max_grad_norm"].help.endswith("(default: 1.0)")
    assert by_name["fp16"].is_bool
    assert by_name["max_steps"].metadata["help"].startswith("Overrides")


def test_replaced_options_are_not_flags():
    """Each entry is of a name that is gone, and names one that there is."""
    names = {field.name for field in fields(TrainArguments)}
    for old, said in TrainOptions.replaced.items():
        assert old not in names
        assert all(word in names for word in re.findall(r"--(\w+_\w+)", said) if word != "num_processes")


def test_the_defaults_are_the_recipes_own(tmp_path):
    training = parse(tmp_path).training
    assert type(training) is TrainArguments
    assert (training.warmup_steps, training.eval_strategy, training.lr_scheduler_type) == (0.05, "epoch", "cosine")
    assert training.max_grad_norm == 1.0


def test_mean_and_spread_of_scores():
    found = spread([{"auroc": 0.5}, {"auroc": 0.7}])
    assert found["mean"]["auroc"] == pytest.approx(0.6)
    assert found["standard_deviation"]["auroc"] == pytest.approx(0.1 * 2**0.5)
    assert spread([{"auroc": 0.5}])["standard_deviation"] == {"auroc": 0.0}
