"""The native moondream against outputs of the official code (tests/golden/README.md)."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor, pixel_table, select_tiling
from vlm_detect.models.moondream.skills import reason

GOLDEN = Path(__file__).parent.parent / "golden" / "moondream_tiny"
IMAGES = ["square_small", "wide", "tall_odd"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights as a released checkpoint: official config.json and model.safetensors, nothing else."""
    folder = tmp_path_factory.mktemp("official")
    shutil.copy(GOLDEN / "config.json", folder)
    shutil.copy(GOLDEN / "weights.safetensors", folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> MoondreamForConditionalGeneration:
    return MoondreamForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> MoondreamProcessor:
    return MoondreamProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def outputs() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="module")
def meta() -> dict[str, Any]:
    return json.loads((GOLDEN / "meta.json").read_text())


def image(name: str) -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png")


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def greedy(model: Any, inputs: Any, n: int = 16) -> tuple[list[int], torch.Tensor]:
    """Generated ids, and the logits of each step before any id is masked."""
    out = model.generate(**inputs, max_new_tokens=n, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grey_levels_are_normalized_by_the_tower_as_by_the_processor(model, processor, dtype) -> None:
    images = [image(name) for name in IMAGES]
    whole = processor.image_processor(images, return_tensors="pt")
    levels = processor.image_processor(images, return_tensors="pt", do_normalize=False)
    assert levels["pixel_values"].dtype == torch.uint8
    tower = copy.deepcopy(model.model.vision).to(dtype)
    for crops, values, tiling in zip(levels["pixel_values"], whole["pixel_values"], whole["tilings"], strict=True):
        real = 1 + int(tiling.prod())
        assert torch.equal(tower.normalize(crops[:real]), values[:real].to(dtype))
    with torch.no_grad():
        found = tower(levels["pixel_values"], levels["tilings"].tolist())
        assert torch.equal(found, tower(whole["pixel_values"], whole["tilings"]))


def test_pixels_travel_as_bytes(model, processor) -> None:
    """In float32 an image of 13 crops has 22 MB."""
    prepared = MoondreamVLM(model, processor, "golden").prepare([image(name) for name in IMAGES])
    assert prepared["pixel_values"].dtype == torch.uint8


def test_all_tilings() -> None:
    table = json.loads((GOLDEN / "tilings.json").read_text())
    rows = table["hw_to_tiling"]
    assert len(rows) == 400
    for height, width, tiles_high, tiles_wide in rows:
        assert select_tiling(height - 112, width - 112, 266, 12) == (tiles_high, tiles_wide), (height, width)


def test_pixel_values_round_in_bfloat16(outputs: dict[str, torch.Tensor]) -> None:
    assert torch.equal(torch.from_numpy(pixel_table(torch.bfloat16)), outputs["pixel_lut_bf16"].float())


@pytest.mark.parametrize("name", IMAGES)
def test_crops_are_equal_bit_for_bit(name: str, meta: dict[str, Any]) -> None:
    expected = meta["images"][name]
    crops, tiling = MoondreamImageProcessor().crops(image(name))
    assert list(tiling) == expected["tiling"]
    assert [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops] == expected["crops_sha256"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_features_and_logits(name, implementation, model, processor, outputs, meta) -> None:
    expected = meta["images"][name]
    model.set_attn_implementation(implementation)
    inputs = processor(images=[image(name)], prompt_ids=[expected["query_prompt_ids"]])
    some_crops = inputs["pixel_values"][0, expected["vision_features_crop_index"]]
    out = model(**inputs)
    model.set_attn_implementation("sdpa")
    assert (
        largest_difference(model.model.vision.encode_crops(some_crops), outputs[f"{name}.vision_features"]) < TOLERANCE
    )
    assert largest_difference(out.image_embeds[0], outputs[f"{name}.image_embeds"]) < TOLERANCE
    prefix = out.logits[0, expected["prefix_logits_positions"]]
    assert largest_difference(prefix, outputs[f"{name}.prefix_logits"]) < TOLERANCE
    assert largest_difference(out.logits[0, meta["prefix_len"] :], outputs[f"{name}.query.prompt_logits"]) < TOLERANCE


@pytest.mark.parametrize("name", IMAGES)
def test_greedy_decoding(name, model, processor, outputs, meta) -> None:
    expected = meta["images"][name]
    for prompt in ("query", "query_single_suffix", "caption_short"):
        inputs = processor(images=[image(name)], prompt_ids=[expected[f"{prompt}_prompt_ids"]])
        ids, logits = greedy(model, inputs)
        assert ids == expected[f"{prompt}_greedy_ids"], prompt
        if prompt == "query":
            assert largest_difference(logits, outputs[f"{name}.query.step_logits"]) < TOLERANCE


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_finetuning_loss(name, model, processor, meta) -> None:
    sft = meta["images"][name]["sft"]
    inputs = processor(images=[image(name)], prompt_ids=[sft["prompt_ids"] + sft["answer_ids"]])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -len(sft["answer_ids"]) :] = torch.tensor(sft["answer_ids"])
    assert float(model(**inputs, labels=labels).loss) == pytest.approx(sft["loss"], abs=TOLERANCE)


@torch.no_grad()
def test_text_without_an_image_is_causal(model, processor, outputs, meta) -> None:
    expected = meta["text_only"]
    inputs = processor(prompt_ids=[expected["prompt_ids"][1:]])  # the processor adds BOS
    assert inputs["input_ids"].tolist() == [expected["prompt_ids"]]
    assert largest_difference(model(**inputs).logits[0], outputs["text_only.logits"]) < TOLERANCE
    ids, logits = greedy(model, inputs)
    assert ids == expected["greedy_ids"]
    assert largest_difference(logits, outputs["text_only.step_logits"]) < TOLERANCE


@torch.no_grad()
def test_region_head(model, outputs) -> None:
    region, hidden = model.model.region, outputs["region.hidden"]
    coordinate = region.encode_coordinate(torch.tensor([[0.3]]))
    assert largest_difference(coordinate, outputs["region.coord_emb_0.3"]) < TOLERANCE
    size = region.encode_size(torch.tensor([0.2, 0.6]))
    assert largest_difference(size, outputs["region.size_emb_0.2_0.6"]) < TOLERANCE
    assert largest_difference(region.decode_coordinate(hidden), outputs["region.coord_logits"]) < TOLERANCE
    assert largest_difference(region.decode_size(hidden[0, 0]), outputs["region.size_logits"]) < TOLERANCE


def test_saved_checkpoints_are_official(model, checkpoint: Path, tmp_path: Path) -> None:
    original = load_file(checkpoint / "model.safetensors")
    model.save_pretrained(tmp_path / "ours")
    model.save_official(tmp_path / "official")
    for folder in ("ours", "official"):
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], original[name]) for name in original)
        again = MoondreamForConditionalGeneration.from_pretrained(tmp_path / folder)
        assert again.config.text_config.hidden_size == model.config.text_config.hidden_size
        assert again.config.templates == model.config.templates


def test_auto_classes_need_no_remote_code(checkpoint: Path) -> None:
    assert type(AutoConfig.from_pretrained(checkpoint)).__name__ == "MoondreamConfig"
    assert isinstance(AutoModelForImageTextToText.from_pretrained(checkpoint), MoondreamForConditionalGeneration)


@pytest.mark.parametrize("name", IMAGES)
def test_reasoning(name, model, processor, meta) -> None:
    expected = meta["images"][name]
    prompt_ids = expected["query_single_suffix_prompt_ids"] + [model.config.thinking_token_id]
    thoughts, answer_ids = reason(model, processor(images=[image(name)], prompt_ids=[prompt_ids]), max_new_tokens=16)
    assert thoughts.ids == expected["reasoning"]["text_ids"]
    assert answer_ids == expected["reasoning"]["answer_ids"]
    assert thoughts.coordinates == expected["reasoning"]["grounding"] == []
