"""Estimates move as the choices do, and follow a real step's tensors; doctor says them in one line a config."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from tests.factories import tiny_config, tiny_vlm
from tests.models.tiny_types import make_tiny_type, save_tiny_type
from tests.models.try_type import RECORD
from tests.train.toys import stored, toy_image
from vlm_detect.apps import doctor
from vlm_detect.apps.estimates import record_of, subject_of
from vlm_detect.apps.recorded import ESTIMATES, sized_configs
from vlm_detect.config import CONFIGS as PACKAGED
from vlm_detect.errors import UserError
from vlm_detect.models import registry
from vlm_detect.models.base import ImageCost
from vlm_detect.models.generic.llava import SYSTEM_TOKENS
from vlm_detect.models.moondream import MoondreamForConditionalGeneration
from vlm_detect.models.moondream.configuration import HUB_ID as MOONDREAM_ID
from vlm_detect.models.nano import nano_path
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava import TinyLlavaConfig, TinyLlavaForConditionalGeneration
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.memory import QUESTION_TOKENS, LiveBytes, Step, estimate_memory, family_of
from vlm_detect.train.options import LoraOptions
from vlm_detect.train.recipe_trainer import LeaveFrozen

CONFIGS = sized_configs()
STEP = Step(images=4, crops=3, questions=2)
# Types whose decoder reads values, or runs with an image alone.
NOT_ESTIMATED = {"blip", "blip-2", "dots3_note", "glm4v_moe", "glm5_next", "idefics", "kosmos-2", "mistral_large4"}
NOT_ESTIMATED |= {"gemma4", "mllama", "qwen4_exp"}


def parts(step, lora=LoraOptions()):  # noqa: B008  frozen
    with torch.device("meta"):
        model = MoondreamForConditionalGeneration(tiny_config())
    return estimate_memory(model, step, lora).parts


def test_each_option_changes_the_expected_part():
    plain = parts(STEP)
    assert parts(replace(STEP, checkpointing=True))["activations"] < 0.7 * plain["activations"]
    assert parts(replace(STEP, quantize="nf4"))["weights"] < plain["weights"]
    assert parts(replace(STEP, images=8))["activations"] > 1.7 * plain["activations"]
    assert parts(replace(STEP, questions=6))["activations"] > 1.5 * plain["activations"]
    assert parts(replace(STEP, dtype=torch.float32))["weights"] > 1.5 * plain["weights"]
    assert parts(STEP, LoraOptions(lora_targets="all-linear+vision"))["activations"] > plain["activations"]
    full = parts(replace(STEP, tune="full"))
    assert full["optimiser"] == 4 * parts(replace(STEP, tune="full", optimizer="adamw_bnb_8bit"))["optimiser"]
    assert full["gradients"] > plain["gradients"]


def test_live_bytes_are_the_bytes_of_live_tensors():
    model = torch.nn.Linear(100, 50, bias=False)
    with LiveBytes(model) as live:
        first = torch.zeros(1000)
        second = first * 2
        assert live.live == 8000
        view = second[10:]
        del second
        assert live.live == 8000  # a view keeps the whole
        del view
        assert live.live == 4000
        model(torch.zeros(10, 100)).sum().backward()
    assert live.peak >= 4000 + 4 * (10 * 100 + 10 * 50)


@pytest.mark.filterwarnings("error::FutureWarning")  # doctor's answer does not drown in them
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_the_gpu_it_is_named_after(config):
    found = record_of(str(config))
    assert sum(found["parts"].values()) / 1e9 < 0.95 * int(config.stem.rpartition("_")[2].removesuffix("gb"))
    # What doctor says without computing it; `python -m vlm_detect.apps.estimates` records it again. Another version of
    # transformers may hold a tensor more.
    recorded = json.loads(ESTIMATES.read_text())[config.stem]
    for name in ("parts", "phases"):
        assert recorded.pop(name) == pytest.approx(found.pop(name), rel=0.01)
    assert recorded == found


SIMULATED = {row["config"]: row for row in json.loads(Path("eval/results/memory.json").read_text())}
PHASES = ("training", "validation", "captioning", "rendering", "serving")


def test_every_config_fits_its_card_in_every_phase_with_a_gb_to_spare():
    """By a simulation at full size (tests/bench/memory.py), which shares no code with the estimates."""
    cards = {path.stem for path in (PACKAGED / "generators" / "cards").glob("*gb.yaml")}
    assert SIMULATED.keys() == {config.stem for config in CONFIGS} | cards
    for name, row in SIMULATED.items():
        assert row["card_gb"] == int(name.rpartition("_")[2].removesuffix("gb"))
        peaks = {phase: row[phase] for phase in PHASES if row[phase] is not None}
        assert len(peaks) == (2 if name in cards else 4), name
        assert max(peaks.values()) + 1 <= row["card_gb"], (name, peaks)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_estimates_agree_with_the_simulation(config):
    """Of the step, whose questions are shorter than those of the simulation, and of validation."""
    row, found = SIMULATED[config.stem], json.loads(ESTIMATES.read_text())[config.stem]
    parts = found["parts"]
    assert parts["weights"] / 1e9 == pytest.approx(row["weights"], rel=0.02)
    training_gb = (sum(parts.values()) - parts["overhead"]) / 1e9
    assert training_gb == pytest.approx(row["training"], rel=0.22)
    validation_gb = (found["phases"]["validation"] - parts["overhead"]) / 1e9
    assert validation_gb == pytest.approx(row["validation"], rel=0.22)


def test_auto_takes_no_model_whose_inference_does_not_fit():
    """The least memory in the table of `auto` holds the weights and one image, with a GB to spare."""
    recorded = json.loads(ESTIMATES.read_text())
    for role, config in (("vlm", "moondream_qlora_8gb"), ("tinyllava", "tinyllava_qlora_8gb")):
        ((_, needed_gb),) = registry._AUTO[role]
        assert recorded[config]["phases"]["inference"] / 1e9 <= needed_gb


def test_the_table_of_the_docs_is_the_simulation():
    page = Path("docs/training.md").read_text()
    for name, row in SIMULATED.items():
        cells = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("weights", *PHASES)]
        assert f"| `{name}` | {' | '.join(cells)} |" in page


def test_doctor_reports_the_machine_and_each_config_without_importing_a_model():
    code = "import sys; from vlm_detect import cli; cli.run(['doctor']); print('models', 'transformers' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" in printed
    assert "extra quant: complete" in printed
    assert all(f"  {config.name}: " in printed for config in CONFIGS)
    assert printed.endswith("models False\n")
    assert len(json.loads(ESTIMATES.read_text())) == len(CONFIGS)


def test_the_models_that_doctor_looks_for_are_those_that_are_loaded():
    assert doctor.MODELS[:2] == (MOONDREAM_ID, TINYLLAVA_ID)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("someone/else", str(CONFIGS[0]), "not here: run hf download someone/else --exclude"),
        (None, "nowhere.yaml", "no such file"),
        (None, "cnn_mai", "unknown keys arch;"),
    ],
)
def test_models_that_doctor_cannot_estimate(model, config, message):
    with pytest.raises(UserError, match=message):
        list(doctor.examine(model, [config]))


def on_a_gpu(monkeypatch, free_gb, *, bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gb * 10**9, 16 * 10**9))


def test_a_step_that_fits_is_not_enough_where_validation_does_not(monkeypatch):
    found = json.loads(ESTIMATES.read_text())["tinyllava_qlora_12gb"]
    step_gb, validation_gb = sum(found["parts"].values()) / 1e9, found["phases"]["validation"] / 1e9
    assert step_gb < 10 < validation_gb
    for free_gb, verdict in ((10, "DOES NOT FIT (10.0 of"), (12, "fits (12.0 of")):
        on_a_gpu(monkeypatch, free_gb, bfloat16=True)
        (line,) = doctor.examine(configs=["tinyllava_qlora_12gb"])
        assert verdict in line


def test_a_card_without_bfloat16_is_estimated_in_what_it_computes_in(monkeypatch):
    """moondream2 in float32, whose weights take twice as much; TinyLLaVA in float16, in which it was trained."""
    recorded = {name: found["parts"]["weights"] / 1e9 for name, found in json.loads(ESTIMATES.read_text()).items()}
    on_a_gpu(monkeypatch, 15, bfloat16=False)
    for name, dtype, factor in (("moondream_lora_12gb", "float32", 2), ("tinyllava_lora_16gb", "float16", 1)):
        (line,) = doctor.examine(configs=[name])
        assert f"GB in {dtype} (weights {factor * recorded[name]:.1f}," in line, line


def test_the_embedded_model_is_estimated_too():
    (line,) = doctor.examine("nano", ["moondream_nano"])
    assert "GB in bfloat16 (weights" in line


@pytest.fixture(scope="module")
def tiny_chat(tmp_path_factory):
    """A model that packs, and one that reads an image for each question."""
    return {name: save_tiny_type(name, tmp_path_factory.mktemp(name)) for name in ("internvl", "qwen3_5")}


def test_any_model_of_transformers_is_estimated_by_its_files(tiny_chat):
    """Of more questions the one that packs pays for their text, the other for an image each."""
    grown = {}
    for name, folder in tiny_chat.items():
        (line,) = doctor.examine(str(folder), ["vlm_lora"])
        assert "for 8 images of" in line, line
        assert "GB in bfloat16 (weights" in line
        subject = subject_of(str(folder))
        step = Step(dtype=torch.float32, images=2, image=subject.image)
        few, many = (
            estimate_memory(subject_of(str(folder)).skeleton, replace(step, questions=count), LoraOptions())
            for count in (1, 4)
        )
        grown[name] = many.parts["activations"] / few.parts["activations"]
    assert grown["internvl"] < 3.8
    assert grown["qwen3_5"] == pytest.approx(4, rel=0.02)


def test_a_trained_tower_of_such_a_model_is_refused(tiny_chat):
    subject = subject_of(str(tiny_chat["internvl"]))
    with pytest.raises(
        UserError, match="all-linear\\+vision: the memory of a trained tower is not estimated for internvl"
    ):
        estimate_memory(subject.skeleton, Step(image=subject.image), LoraOptions(lora_targets="all-linear+vision"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of numpy, in some processors
@pytest.mark.parametrize("row", json.loads(RECORD.read_text()), ids=lambda row: row["model_type"])
def test_every_type_is_estimated_or_refused_in_one_line(row, tmp_path):
    if not row["trains"]:
        pytest.skip(row["reason"])
    folder = str(save_tiny_type(row["model_type"], tmp_path))
    if row["model_type"] in NOT_ESTIMATED:
        with pytest.raises(UserError, match=r"^memory is not estimated for .* on shapes alone"):
            list(doctor.examine(folder, ["vlm_lora"]))
    else:
        (line,) = doctor.examine(folder, ["vlm_lora"])
        assert "GB in bfloat16 (weights" in line


def moondream():
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions())
    return vlm, lambda: MoondreamForConditionalGeneration(tiny_config()), LoraOptions()


def tinyllava():
    vlm = load_vlm("tinyllava-nano", device="cpu")
    lora = LoraOptions(train_connector=True)
    add_lora(vlm, lora)
    config = TinyLlavaConfig.from_pretrained(nano_path("tinyllava"))
    return vlm, lambda: TinyLlavaForConditionalGeneration(config), lora


def internvl():
    with torch.random.fork_rng():
        model, processor = make_tiny_type("internvl")
    vlm = family_of(model.config)(model, processor, "internvl")
    lora = LoraOptions()
    add_lora(vlm, lora)
    return vlm, lambda: type(model)(copy.deepcopy(model.config)), lora


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [moondream, tinyllava, internvl])
def test_the_estimate_matches_the_tensors_of_a_real_step(family, checkpointing):
    """Tensors of a step of the trainer's own loss on the CPU, counted, against the meta device's."""
    vlm, build, lora = family()
    if checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        arguments = argparse.Namespace(gradient_checkpointing=True)
        LeaveFrozen().on_train_begin(arguments, TrainerState(), TrainerControl(), model=vlm.model)
    vlm.model.train()
    side = getattr(vlm.model.config.vision_config, "image_size", 32)
    image = stored(toy_image(False, np.random.default_rng(0), side if isinstance(side, int) else side[0]))
    if family is internvl:
        (prepared,) = vlm.prepare([image.open()])
        cost = ImageCost(prepared["input_ids"].shape[1], prepared["pixel_values"].numel())
        tokens = cost.prefix_tokens
    else:
        cost = None
        tokens = 1 + 16 if family is moondream else SYSTEM_TOKENS + vlm.model.config.image_seq_length
    # Questions of the estimate's length, template and answer included; what a prompt before the image lacks, they have.
    prefix = cost.prefix_tokens if cost else len(vlm.prefix_ids())
    length = (tokens + 2 * QUESTION_TOKENS - prefix) // 2
    asked = [Question("explain", question_of(vlm, length - len(vlm.answer_ids("No."))), "No.")] * 2
    batch = Collator(vlm, pack=True)([[Example(image, asked, "real") for _ in range(4)]])
    with LiveBytes(vlm.model) as live:
        answer_loss(vlm, vlm.model, batch).backward()
    with torch.device("meta"):
        skeleton = build()
    crops = batch["prepared"]["pixel_values"].shape[1] if family is moondream else 1
    step = Step(dtype=torch.float32, images=4, questions=2, crops=crops, image=cost, checkpointing=checkpointing)
    estimate = estimate_memory(skeleton, step, lora).parts
    assert live.peak == pytest.approx(estimate["activations"] + estimate["gradients"], rel=0.1)


def question_of(vlm, length):
    """A question of so many tokens with its template."""
    words = ""
    while len(vlm.question_ids(words)) < length:
        words += "?x"[len(words) % 2]
    return words
