"""recipes/moondream_lora.py as a user runs it: trained, killed, resumed, run again, and given what it cannot use."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.scripts.here import run_here
from tests.train.toys import save_tiny_model, save_toy_pairs, toy_images
from vlm_detect.config import REPOSITORY
from vlm_detect.stats.calibration import Calibration

RECIPE = REPOSITORY / "recipes" / "moondream_lora.py"
SETTINGS = ["--num_train_epochs", "4", "--learning_rate", "3e-3", "--per_device_train_batch_size", "2"]
SETTINGS += ["--questions_per_image", "2", "--lora_dropout", "0.1", "--cpu_threads", "1", "--report_to", "none"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and a dataset, in which the recipe is run."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_model(folder / "model")
    save_toy_pairs(folder / "pairs", n_train=10, n_validation=3)
    probe = {"name": "size", "auc": 0.51, "ci95": [0.45, 0.57], "n": 20, "groups": 10}
    (folder / "pairs" / "audit.json").write_text(json.dumps({"probes": [probe], "findings": []}))
    return folder


def command(home, *arguments, launcher=(sys.executable,)):
    paths = ["--model", str(home / "model"), "--data", str(home / "pairs")]
    return [*launcher, str(RECIPE), *paths, *SETTINGS, *map(str, arguments)]


def run(home, *arguments, **options):
    return subprocess.run(
        command(home, *arguments, **options),
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def losses(run_directory: Path) -> list[float]:
    history = json.loads((run_directory / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def undisturbed(home):
    launcher = (sys.executable, "-m", "accelerate.commands.launch")
    done = run(home, "--output_dir", "undisturbed", launcher=launcher)
    assert done.returncode == 0, done.stderr
    return home / "undisturbed", done.stdout


def test_a_run_writes_everything_that_the_next_step_needs(undisturbed):
    folder, output = undisturbed
    assert "validation after epoch 4.00" in output
    assert len(losses(folder)) == 20
    assert losses(folder)[-1] < losses(folder)[0]
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(folder.parent / "model")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["learning_rate"] == 3e-3
    assert set(record["validation"]) >= {"auroc", "balanced_accuracy"}
    assert sorted(record["data_sha256"])[0].startswith("data/test-")
    assert Calibration.load(folder).n == 6
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "| caption twins (toy) | 10 |" in card
    assert "| size | 0.510 | 0.450 to 0.570 |" in card
    assert f"| kept | {record['validation']['auroc']:.3f} |" in card
    page = (folder / "training.html").read_text()
    assert "AUROC" in page
    assert page.count("data:image/svg+xml") == 2
    assert {"loss.png", "validation.png"} <= {file.name for file in folder.iterdir()}
    assert (folder / "preprocessor_config.json").is_file()


def test_the_same_command_again_has_nothing_to_do(home, undisturbed):
    again = run(home, "--output_dir", "undisturbed")
    assert again.returncode == 0
    assert "nothing is left to do" in again.stdout


@pytest.mark.parametrize(
    ("sent", "status", "last_checkpoint"),
    [("SIGTERM", 130, 13), pytest.param("SIGKILL", -9, 10, marks=pytest.mark.slow)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(home, undisturbed, sent, status, last_checkpoint):
    """Killed, it goes on from the last epoch's end (step 10); terminated, it saves after the step that it is in."""
    folder = home / sent
    launcher = (sys.executable, str(REPOSITORY / "tests" / "scripts" / "stopped.py"), sent, "12", "0")
    assert run(home, "--output_dir", folder, launcher=launcher).returncode == status
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    resumed = run(home, "--output_dir", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert int(resumed.stdout.split("step ")[1].split("/")[0]) - 1 == last_checkpoint
    assert losses(folder) == losses(undisturbed[0])
    adapters = [load_file(run / "adapter_model.safetensors") for run in (folder, undisturbed[0])]
    assert all((adapters[0][name] == adapters[1][name]).all() for name in adapters[1])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--no_such_flag", "1"], 2, "--no_such_flag"),
        (["--config", "no.yaml"], 2, "no.yaml"),
        (["--output_dir", "undisturbed", "--lora_r", "4"], 1, "lora_r 16 -> 4"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--data", "one_class"], 1, "only one class (4 real)"),
        (["--data", "no_validation"], 1, "no validation split"),
        (["--data", "other_columns"], 1, "text"),
        (["--model", "nowhere/else"], 1, "nowhere/else"),
        (["--lora_targets", "brain"], 2, "brain"),
        (["--resume_from_checkpoint", "nowhere"], 1, "--resume_from_checkpoint nowhere: no complete checkpoint"),
    ],
)
def test_wrong_inputs_are_one_line(home, undisturbed, monkeypatch, capsys, arguments, status, message):
    bad_datasets(home)
    monkeypatch.chdir(home)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, at import
    monkeypatch.setattr(sys, "argv", command(home, "--output_dir", "bad", "--use_cpu", "True", *arguments)[1:])
    with pytest.raises(SystemExit) as end:  # in this process, for starting nine takes a minute
        runpy.run_path(str(RECIPE), run_name="__main__")
    error = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == status, error
    assert message in error[-1]
    assert not (home / "bad").exists()


def test_without_a_config_the_nano_model_uses_its_own(home):
    flags = ["--model", "nano", "--data", home / "pairs", "--output_dir", home / "nano", "--max_steps", "1"]
    done = run_here("recipes/moondream_lora.py", *flags, "--use_cpu", "True", "--report_to", "none", "--lora_r", "4")
    assert done.returncode == 0, done.stderr
    assert "config moondream_nano for everything not set by a flag" in done.stdout
    config = json.loads((home / "nano" / "run.json").read_text())["config"]
    assert (config["lora_targets"], config["augment"], config["lora_r"]) == ("all-linear+vision", ["flip"], 4)


def bad_datasets(home: Path) -> None:
    if (home / "one_class").exists():
        return
    both = toy_images(["real", "generated"])
    for name, split, rows in (
        ("one_class", "train", toy_images(["real"] * 4)),
        ("one_class", "validation", both),
        ("no_validation", "train", both),
        ("other_columns", "train", both.select_columns(["label"]).rename_column("label", "text")),
    ):
        (home / name / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(home / name / "data" / f"{split}-00000-of-00001.parquet")
