"""What leaves: adapter, merged model, official checkpoint and LoRA variant; each read back and held to the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from tests.factories import tiny_tokenizer, tiny_vlm
from tests.models.tiny_chat import save_tiny
from vlm_detect.errors import UserError
from vlm_detect.models.export import export, merge
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.variant import variant_tensors
from vlm_detect.models.registry import load_vlm, without_adapter

GOLDEN = Path(__file__).parent.parent / "golden" / "moondream_tiny"
TEXT = r".*text\.blocks\.\d+\.(attn\.qkv|mlp\.fc1|mlp\.fc2)"
EVERYTHING = r".*\.(text|vision)\.blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"


def make_run(folder: Path, dtype: torch.dtype = torch.float32, **lora: Any) -> Path:
    """A base model of `dtype` and a run directory with a LoRA whose B is not zero."""
    vlm = tiny_vlm()
    vlm.model.to(dtype).save_pretrained(folder / "base")
    vlm.processor.save_pretrained(folder / "base")
    config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **lora)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = get_peft_model(vlm.model, config)
    config.base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "run")
    vlm.processor.save_pretrained(folder / "run")
    (folder / "run" / "calibration.json").write_text('{"temperature": 2.0, "n": 3}')
    (folder / "run" / "measures.json").write_text('{"photos": []}')
    (folder / "run" / "checkpoint-1").mkdir()
    return folder / "run"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    torch.manual_seed(0)
    image = Image.fromarray(torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8).numpy())
    processor = MoondreamProcessor(model.config, tokenizer=tiny_tokenizer())
    return model(**processor(images=[image], text=["Is this image AI-generated?"])).logits


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("target", ["merged", "official"])
def test_merged_weights_give_the_adapters_logits(target, lora, tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=EVERYTHING, **lora)
    export(str(run), target, tmp_path / "out")
    tuned, base = logits(load_vlm(str(run)).model), logits(load_vlm(str(tmp_path / "base")).model)
    again = MoondreamForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(again), tuned, atol=1e-5)
    assert (tuned - base).abs().max() > 0.1, "the adapter changes nothing: nothing was tested"


@pytest.mark.parametrize("target", ["adapter", "merged", "official"])
def test_weights_have_the_usual_file_permissions(target, tmp_path: Path) -> None:
    """safetensors itself writes for the owner alone."""
    export(str(make_run(tmp_path, target_modules=EVERYTHING)), target, tmp_path / "out")
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "any").stat().st_mode}


def test_a_merged_folder_is_a_model_with_its_calibration(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=EVERYTHING)
    export(str(run), "merged", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["temperature"] == 2.0
    assert (tmp_path / "out" / "measures.json").is_file(), "nothing of its explanations can be checked any more"
    vlm = load_vlm(str(tmp_path / "out"))
    assert vlm.question_ids("x") == load_vlm(str(run)).question_ids("x")


def test_the_official_folder_has_the_official_keys_and_config(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=TEXT)
    export(str(run), "official", tmp_path / "out")
    out, base = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "base"))
    assert out.keys() == base.keys()
    assert any(name.startswith("model.region.") for name in out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["HfMoondream"]


def test_a_bfloat16_merge_is_rounded_once_and_keeps_other_tensors(tmp_path: Path) -> None:
    run = make_run(tmp_path, torch.bfloat16, target_modules=TEXT)
    export(str(run), "official", tmp_path / "out")
    out, base = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "base"))
    adapter = load_file(run / "adapter_model.safetensors")
    changed = {name for name in out if not torch.equal(out[name], base[name])}
    assert all(tensor.dtype == torch.bfloat16 for tensor in out.values())
    assert len(changed) == 2 * 3
    for name in changed:
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        delta = adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"] * (6 / 4)
        assert torch.equal(out[name], (base[name].float() + delta).to(torch.bfloat16)), name


def test_an_adapter_is_copied_without_its_checkpoints(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=TEXT)
    export(str(run), "adapter", tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint-1").exists()
    assert torch.equal(logits(load_vlm(str(tmp_path / "out")).model), logits(load_vlm(str(run)).model))


def test_variant_holds_the_scale_in_b_and_zeros_for_proj(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=r".*text\.blocks\.1\.(attn\.qkv|mlp\.fc1)")
    export(str(run), "variant", tmp_path / "out")
    tensors = torch.load(tmp_path / "out" / "final.pt", weights_only=True)
    names = [
        f"text.blocks.{i}.{m}.{ab}"
        for i in (0, 1)
        for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for ab in "AB"
    ]
    assert sorted(tensors) == sorted(names)
    adapter = load_file(run / "adapter_model.safetensors")
    prefix = "base_model.model.model.text.blocks.1.mlp.fc1"
    assert torch.equal(tensors["text.blocks.1.mlp.fc1.A"], adapter[f"{prefix}.lora_A.weight"])
    assert torch.equal(tensors["text.blocks.1.mlp.fc1.B"], adapter[f"{prefix}.lora_B.weight"] * (6 / 4))
    assert not tensors["text.blocks.1.attn.proj.B"].any()
    assert tensors["text.blocks.0.attn.proj.A"].shape == (4, 64)


@pytest.fixture
def golden_base(tmp_path: Path) -> Path:
    """The golden checkpoint with a tokenizer, so that it loads like any model folder."""
    folder = tmp_path / "golden"
    folder.mkdir()
    shutil.copy(GOLDEN / "config.json", folder)
    shutil.copy(GOLDEN / "weights.safetensors", folder / "model.safetensors")
    return folder


def golden_variant(with_proj: bool = True) -> dict[str, torch.Tensor]:
    variant = load_file(GOLDEN / "variant.safetensors")
    return {
        name.removeprefix("model."): tensor if with_proj or not name.endswith("attn.proj.B") else tensor * 0
        for name, tensor in variant.items()
    }


def as_trained(name: str) -> str:
    """A variant's key as the official training writes it."""
    parts = name.removesuffix(".A").removesuffix(".B").split(".")
    renamed = ".".join(parts).replace("text.blocks", "text_model.transformer.h").replace(".attn", ".mixer")
    renamed = renamed.replace(".proj", ".out_proj").replace(".qkv", ".Wqkv")
    return f"{renamed}.parametrizations.weight.0{name[-2:]}"


@pytest.mark.parametrize("with_proj", [False, True])
@pytest.mark.parametrize("form", ["file", "folder", "training names"])
def test_an_official_variant_gives_the_official_logits(form, with_proj, golden_base: Path, tmp_path: Path) -> None:
    meta, outputs = json.loads((GOLDEN / "meta.json").read_text()), load_file(GOLDEN / "outputs.safetensors")
    variant = golden_variant(with_proj)
    stored = {as_trained(name): tensor for name, tensor in variant.items()} if form == "training names" else variant
    torch.save(stored, tmp_path / "final.pt")
    adapter = tmp_path if form == "folder" else tmp_path / "final.pt"
    model = load_vlm(str(golden_base), adapter=adapter, device="cpu").model
    name = meta["variant"]["image"]
    inputs = MoondreamProcessor.from_pretrained(golden_base)(
        images=[Image.open(GOLDEN / f"{name}.png")], prompt_ids=[meta["images"][name]["query_prompt_ids"]]
    )
    key, ids_key = ("variant", "greedy_ids") if with_proj else ("variant_no_proj", "greedy_ids_no_proj")
    with torch.no_grad():
        difference = model(**inputs).logits[0, meta["prefix_len"] :] - outputs[f"{key}.prompt_logits"]
    assert difference.abs().max() < 1e-5
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ids.tolist() == meta["variant"][ids_key]
    exported = variant_tensors(model)
    assert exported.keys() == variant.keys()
    kept = [key for key in variant if with_proj or ".proj." not in key]
    assert all(torch.equal(exported[key], variant[key]) for key in kept)
    if with_proj:
        with pytest.raises(UserError, match="cannot be merged"):
            merge(model)
    else:
        merged = merge(model)
        with torch.no_grad():
            difference = merged(**inputs).logits[0, meta["prefix_len"] :] - outputs[f"{key}.prompt_logits"]
        assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("with_proj", [False, True])
def test_the_base_of_a_variant_is_reused_or_loaded_again(with_proj, golden_base: Path, tmp_path: Path) -> None:
    torch.save(golden_variant(with_proj), tmp_path / "final.pt")
    vlm = load_vlm(str(golden_base), adapter=tmp_path, device="cpu")
    base = without_adapter(vlm)
    assert (base is None) == with_proj  # what it adds to the projection does not leave with the adapter


def test_a_variant_that_does_not_fit_is_refused(golden_base: Path, tmp_path: Path) -> None:
    good = golden_variant()

    def refused(stored: Any, words: str, model: Path = golden_base) -> None:
        torch.save(stored, tmp_path / "final.pt")
        with pytest.raises(UserError, match=words):
            load_vlm(str(model), adapter=tmp_path, device="cpu")

    refused({name: tensor for name, tensor in good.items() if "blocks.2.mlp" not in name}, "is missing or unknown")
    refused(good | {"text.blocks.9.mlp.fc1.A": torch.zeros(4, 4)}, "is missing or unknown")
    refused(good | {"text.blocks.0.mlp.fc1.A": torch.zeros(4, 3)}, "text.blocks.0.mlp.fc1 has A and B of")
    refused({"text": good}, "holds other things than tensors")
    refused({"path": Path("x")}, "cannot be read safely")
    (tmp_path / "final.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read safely"):
        load_vlm(str(golden_base), adapter=tmp_path, device="cpu")
    torch.save(good, tmp_path / "final.pt")
    with pytest.raises(UserError, match="fits a moondream2 alone"):
        load_vlm(str(save_tiny("llava", tmp_path / "llava")), adapter=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"target_modules": EVERYTHING}, "cannot hold the adapter's model.vision"),
        ({"target_modules": r".*text.*attn\.proj"}, "attn.proj"),
        ({"target_modules": TEXT, "use_dora": True}, "no DoRA"),
    ],
)
def test_variants_that_would_mean_something_else_are_refused(lora, words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        export(str(make_run(tmp_path, **lora)), "variant", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fully_tuned_model_is_exported_too(tmp_path: Path) -> None:
    base = make_run(tmp_path, target_modules=TEXT).parent / "base"
    with pytest.raises(UserError, match="no adapter_config"):  # a model folder is no run
        export(str(base), "official", tmp_path / "out")
    (base / "run.json").write_text("{}")
    export(str(base), "official", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in load_file(base / "model.safetensors").items())
    for target in ("adapter", "variant"):
        with pytest.raises(UserError, match="tuned in full has no adapter"):
            export(str(base), target, tmp_path / target)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=TEXT)
    with pytest.raises(UserError, match="not empty"):
        export(str(run), "merged", run)
    with pytest.raises(UserError, match="no adapter_config"):
        export(str(tmp_path / "base"), "merged", tmp_path / "out")
