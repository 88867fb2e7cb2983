"""recipes/tinyllava_lora.py as a user runs it: on conversations of another machine, and on an image dataset in NF4."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.scripts.here import run_here
from tests.train.toys import toy_images
from vlm_detect.models.registry import load_vlm
from vlm_detect.nano.tinyllava import NanoTinyLlava, build_tinyllava, save_tinyllava
from vlm_detect.nano.tokenizer import train_tokenizer

SETTINGS = ["--use_cpu", "True", "--cpu_threads", "1", "--report_to", "none", "--per_device_train_batch_size", "8"]
CONVERSATIONS = Path(os.environ.get("VLM_DETECT_DATA", "")) / "custom_vqa" / "finetune" / "captions.json"
ASKED, ANSWERED = '{"from": "human", "value": "?"}', '{"from": "gpt", "value": "x"}'
needs_conversations = pytest.mark.skipif(not CONVERSATIONS.is_file(), reason="VLM_DETECT_DATA/custom_vqa is not there")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an untrained model of small sizes."""
    folder = tmp_path_factory.mktemp("home")
    sizes = NanoTinyLlava(vision_width=32, vision_layers=3, vision_heads=2, text_width=64, text_layers=2, text_heads=1)
    save_tinyllava(*build_tinyllava(sizes, train_tokenizer(["the image shows a photo"], 1300)), folder / "model")
    return folder


def losses_of(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@needs_conversations
@pytest.mark.slow
def test_the_published_conversations_train_for_six_epochs(home) -> None:
    run = home / "conversations"
    arguments = ["--model", home / "model", "--data", CONVERSATIONS, "--output_dir", run, *SETTINGS]
    done = run_here("recipes/tinyllava_lora.py", *arguments, "--num_train_epochs", 6, "--learning_rate", 3e-3)
    assert done.returncode == 0, done.stderr
    losses = losses_of(run)
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])  # of random weights, which know no word
    assert done.stdout.count("validation after epoch") == 6
    record = json.loads((run / "run.json").read_text())
    assert record["data_sha256"].keys() == {"captions.json"}
    names = load_file(run / "adapter_model.safetensors").keys()
    assert any("multi_modal_projector.linear_1.weight" in name for name in names), "the tuned connector is not saved"
    assert not any("vision_tower" in name for name in names)


def test_image_datasets_and_a_quantised_base(home) -> None:
    data = home / "images" / "data"
    data.mkdir(parents=True)
    for split in ("train", "validation"):
        toy_images(["real", "generated"] * 4).to_parquet(data / f"{split}-00000-of-00001.parquet")
    run = home / "quantised"
    arguments = ["--model", home / "model", "--data", data.parent, "--output_dir", run, *SETTINGS]
    done = run_here(
        "recipes/tinyllava_lora.py", *arguments, "--quantize", "nf4", "--num_train_epochs", 4, "--lora_r", 8
    )
    assert done.returncode == 0, done.stderr
    assert losses_of(run)[-1] < losses_of(run)[0]
    assert load_vlm(str(run), device="cpu").question_ids("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "it has no conversation"),
        ("nothing", "not JSON"),
        (f'[{{"image": "no.jpg", "conversations": [{ASKED}]}}]', "its questions and answers do not alternate"),
        (f'[{{"image": "/a/no.jpg", "conversations": [{ASKED}, {ANSWERED}]}}]', "no.jpg is missing"),
    ],
)
def test_conversations_that_cannot_be_used(home, tmp_path, content: str, message: str) -> None:
    (tmp_path / "data.json").write_text(content)
    arguments = ["--model", home / "model", "--data", tmp_path / "data.json", "--output_dir", tmp_path / "run"]
    done = run_here("recipes/tinyllava_lora.py", *arguments, *SETTINGS)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
