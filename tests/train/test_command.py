"""A flag's wrong value is one line before anything is loaded, whether argparse, transformers or we refuse it."""

from __future__ import annotations

import pytest

from vlm_detect.errors import UserError
from vlm_detect.train.command import Options, spread
from vlm_detect.train.options import TrainOptions


def parse(folder, *flags):
    argv = ["--model", "nano", "--output_dir", str(folder), "--use_cpu", "True", "--report_to", "none", *flags]
    return Options.parse(argv, doc=None, training=TrainOptions)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--optim nonsense", "--optim: invalid choice: 'nonsense'"),
        ("--eval_strategy sometimes", "invalid choice: 'sometimes' (choose from 'no', 'steps', 'epoch')"),
        ("--save_strategy never", "invalid choice: 'never'"),
        ("--lr_scheduler_type x", "invalid choice: 'x' (choose from 'linear', 'cosine'"),
        ("--learning_rate abc", "invalid float value: 'abc'"),
        ("--learning_rate -1", "--learning_rate -1.0: give 0 or more"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: give 1 or more"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: give 1 or more"),
        ("--num_train_epochs 0", "--num_train_epochs 0: give more than 0"),
        ("--fsdp shards", "Unknown `fsdp` option: shards"),
        ("--fsdp_config {half", "--fsdp_config {half: not JSON"),
        ("--warmup_steps -1", "warmup_steps >= 0"),
        ("--save_strategy no", "--load_best_model_at_end requires the save and eval strategy to match"),
        ("--label_smoothing_factor 2", "--label_smoothing_factor 2.0: give a part from 0"),
        ("--train_sampling_strategy sequential", "leave it out"),
        ("--lora_r 0", "--lora_r 0: give 1 or more"),
        ("--lora_dropout 1", "--lora_dropout 1.0: give a part"),
        ("--questions_per_image 0", "--questions_per_image 0: give 1 or more"),
        ("--limit 0", "--limit 0: give 1 or more"),
        ("--weights 1 2", "name the other datasets by --mix"),
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


def test_the_best_model_is_chosen_by_a_score_that_there_is(tmp_path):
    with pytest.raises(UserError, match="--metric_for_best_model nonsense: choose from score, auroc"):
        parse(tmp_path, "--metric_for_best_model", "nonsense")
    assert parse(tmp_path, "--metric_for_best_model", "auroc").training.greater_is_better


def test_without_a_token_nothing_can_be_pushed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlm_detect.train.options.get_token", lambda: None)
    with pytest.raises(SystemExit):
        parse(tmp_path, "--push_to_hub", "True")
    assert "--push_to_hub needs a token" in capsys.readouterr().err


def test_runs_of_several_seeds_share_neither_a_folder_nor_a_repository(tmp_path):
    for flags, name in ([], "folder"), (["--hub_model_id", "me/mine"], "me/mine"):
        runs = [parse(tmp_path / "folder", *flags).with_seed(seed).training for seed in (0, 1)]
        assert [run.output_dir for run in runs] == [str(tmp_path / "folder" / f"seed_{seed}") for seed in (0, 1)]
        assert [run.hub_model_id for run in runs] == [f"{name}-seed_{seed}" for seed in (0, 1)]


def test_a_true_fsdp_is_no_option_of_old(tmp_path):
    assert parse(tmp_path, "--fsdp", "True").training.fsdp is True
    assert not parse(tmp_path, "--fsdp", "False").training.fsdp


def test_mean_and_spread_of_scores():
    found = spread([{"auroc": 0.5}, {"auroc": 0.7}])
    assert found["mean"]["auroc"] == pytest.approx(0.6)
    assert found["standard_deviation"]["auroc"] == pytest.approx(0.1 * 2**0.5)
    assert spread([{"auroc": 0.5}])["standard_deviation"] == {"auroc": 0.0}
