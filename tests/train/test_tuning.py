"""Every way of holding and tuning the model trains a few steps through the recipe's own flags."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts.here import run_here
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.options import ModelOptions
from vlm_detect.train.tuning import loading

RECIPE = "recipes/moondream_lora.py"
SETTINGS = ["--num_train_epochs", "3", "--learning_rate", "1e-2", "--per_device_train_batch_size", "2"]
SETTINGS += ["--questions_per_image", "2", "--report_to", "none", "--use_cpu", "True", "--cpu_threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    save_tiny_model(folder / "model")
    save_toy_pairs(folder / "pairs", n_train=4, n_validation=2)
    return folder


def run(home, name, *arguments):
    paths = ["--model", home / "model", "--data", home / "pairs", "--output_dir", home / name]
    return run_here(RECIPE, *paths, *SETTINGS, *arguments)


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "flags",
    [
        ["--use_rslora", "True"],
        ["--use_dora", "True"],
        ["--quantize", "nf4"],
        ["--quantize", "nf4", "--use_dora", "True", "--lora_targets", "attention"],
        ["--quantize", "int8"],
        ["--gradient_checkpointing", "True"],
        ["--dtype", "bfloat16"],
        ["--autocast", "bf16"],
        ["--compile_layers", "aot_eager", "--pack_tokens", "800"],
        ["--attention", "eager"],
        ["--lora_targets", "mlp+vision", "--lora_last_layers", "1"],
    ],
    ids=lambda flags: " ".join(flags).replace("--", "").replace(" True", ""),
)
def test_each_way_learns_and_its_adapter_loads(home, flags):
    name = "-".join(flags).replace("--", "")
    done = run(home, name, *flags)
    assert done.returncode == 0, done.stderr
    found = losses(home / name)
    assert sum(found[-2:]) < 0.8 * sum(found[:2]), found
    vlm = load_vlm(str(home / name), dtype=torch.float32)
    assert ("compiled layers: 1 shapes of rows" in done.stdout) == ("--compile_layers" in flags)
    assert any(parameter.abs().max() > 0 for key, parameter in vlm.model.named_parameters() if "lora_B" in key)


def test_only_layers_of_the_language_model_are_quantised(home):
    options = ModelOptions(quantize="nf4", dtype="float32")
    vlm = load_vlm(str(home / "model"), device="cpu", **loading(options, torch.device("cpu")))
    kinds = {name: type(module).__name__ for name, module in vlm.model.named_modules()}
    assert kinds["model.text.blocks.1.mlp.fc2"] == kinds["model.text.blocks.0.attn.qkv"] == "Linear4bit"
    assert kinds["model.vision.blocks.0.attn.qkv"] == kinds["model.vision.proj_mlp.fc1"] == "Linear"
    assert kinds["model.text.lm_head"] == "Linear"


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_bnb_8bit"])
def test_full_tuning_changes_only_the_language_model_and_saves_a_model(home, optimizer):
    done = run(home, optimizer, "--tune", "full", "--optim", optimizer, "--learning_rate", "3e-3")
    assert done.returncode == 0, done.stderr
    assert losses(home / optimizer)[-1] < losses(home / optimizer)[0]
    before, after = (load_file(home / name / "model.safetensors") for name in ("model", optimizer))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.text.blocks.0.attn.qkv.weight" in changed
    assert all(name.startswith("model.text.") for name in changed)
    assert load_vlm(str(home / optimizer)).name == str(home / optimizer)


def test_several_seeds_write_mean_and_spread(home):
    done = run(home, "several", "--seeds", "0", "1", "--num_train_epochs", "1")
    assert done.returncode == 0, done.stderr
    summary = json.loads((home / "several" / "seeds.json").read_text())
    scores = [json.loads((home / "several" / f"seed_{s}" / "run.json").read_text())["validation"] for s in (0, 1)]
    assert [summary["seeds"][seed]["log_loss"] for seed in ("0", "1")] == [one["log_loss"] for one in scores]
    assert summary["mean"]["log_loss"] == pytest.approx(sum(one["log_loss"] for one in scores) / 2)
    assert summary["standard_deviation"]["log_loss"] > 0
    assert losses(home / "several" / "seed_0") != losses(home / "several" / "seed_1")
    assert "over 2 seeds" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(attention="flex_attention"), "trains only on CUDA, not on cpu"),
    ],
)
def test_impossible_combinations_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        loading(options, torch.device("cpu"))


def test_an_unknown_compiler(home):
    done = run(home, "unknown", "--compile_layers", "magic")
    assert done.returncode == 1
    assert "--compile_layers magic: no such backend" in done.stderr
