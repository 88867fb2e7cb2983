"""From IDs to models, and one clear line where there is none."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import requires_backends

from tests.factories import tiny_moondream, tiny_vlm
from vlm_detect import extras
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.models import registry
from vlm_detect.models.registry import (
    ResolvedModel,
    adapter_base,
    explain_load_error,
    load_vlm,
    resolve_id,
    without_adapter,
)
from vlm_detect.models.untrusted import load_untrusted


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    vlm = tiny_vlm()
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_auto_is_the_largest_that_fits_and_nano_without_an_accelerator(monkeypatch, capsys) -> None:
    monkeypatch.setattr(registry, "nano_path", lambda name: Path("/weights") / name)
    for free_gb, vlm, renderer in [
        (0.0, "nano", "nano"),
        (8.0, "vikhyatk/moondream2", "nano"),
        (24.0, "vikhyatk/moondream2", "stabilityai/stable-diffusion-3.5-medium"),
        (80.0, "vikhyatk/moondream2", "stabilityai/stable-diffusion-3.5-large"),
    ]:
        monkeypatch.setattr(registry, "free_accelerator_gb", lambda free_gb=free_gb: free_gb)
        assert resolve_id("auto").name == vlm
        assert resolve_id("auto", "renderer").name == renderer
    assert "auto chose stabilityai/stable-diffusion-3.5-large" in capsys.readouterr().err


def test_hub_ids_are_pinned() -> None:
    assert resolve_id("vikhyatk/moondream2").revision == "2025-06-21"
    assert resolve_id("vikhyatk/moondream2", revision="2025-01-09").revision == "2025-01-09"


@pytest.mark.parametrize("name", ["no_such_folder", "./missing/model", "/missing/model", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="neither a folder nor a Hub id"):
        resolve_id(name)


def test_a_run_directory_names_its_base(model_folder: Path, tmp_path: Path) -> None:
    peft_model = get_peft_model(tiny_moondream(), LoraConfig(r=2, target_modules=["qkv"]))
    peft_model.peft_config["default"].base_model_name_or_path = str(model_folder)
    peft_model.save_pretrained(tmp_path / "run")
    assert adapter_base(tmp_path / "run") == str(model_folder)
    assert hasattr(load_vlm(str(tmp_path / "run")).model, "peft_config")


def test_a_base_shares_the_weights_of_its_adapter(model_folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)  # random: it changes something
    get_peft_model(tiny_moondream(), lora).save_pretrained(tmp_path / "run")
    plain, adapted = load_vlm(str(model_folder)), load_vlm(str(model_folder), adapter=tmp_path / "run")
    base = without_adapter(adapted)
    assert base is not None
    assert without_adapter(plain) is None
    held = {tensor.data_ptr() for tensor in adapted.model.parameters()}
    assert all(tensor.data_ptr() in held for tensor in base.model.parameters())
    photo, ask = Image.new("RGB", (20, 20), "red"), [[Ask("Is this image AI-generated?", ("Yes.", "No."))]]
    scores = [Engine(vlm).score([photo], ask)[0][0][0].logprob for vlm in (plain, base, adapted)]
    assert scores[0] == scores[1] != scores[2]


def test_an_adapter_of_another_model_is_refused(model_folder: Path, tmp_path: Path) -> None:
    wider = tiny_moondream(text_config={"intermediate_size": 200})
    get_peft_model(wider, LoraConfig(r=2, target_modules=["fc1"])).save_pretrained(tmp_path / "run")
    with pytest.raises(UserError, match="does not fit this model"):
        load_vlm(str(model_folder), adapter=tmp_path / "run")
    with pytest.raises(UserError, match="no adapter_config"):
        load_vlm(str(model_folder), adapter=tmp_path)
    run = tmp_path / "partly"  # as of another family: some of its layers have the names of ours
    get_peft_model(tiny_moondream(), LoraConfig(r=2, target_modules=["fc1"])).save_pretrained(run)
    tensors = load_file(run / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[:-1]), run / "adapter_model.safetensors")
    set_base(run, "another/model")
    with pytest.raises(UserError, match="does not fit this model: it was trained on another/model"):
        load_vlm(str(model_folder), adapter=run)


def set_base(run: Path, name: str) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_one_line(file: str, model_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    get_peft_model(tiny_moondream(), LoraConfig(r=2, target_modules=["fc1"])).save_pretrained(run)
    set_base(run, str(model_folder))
    (run / file).write_bytes((run / file).read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        load_vlm(str(run))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UserError, match="'resnet' is not supported"):
        load_vlm(str(tmp_path))


def test_a_cnn_is_no_vision_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vlm_detect_cnn"}')
    with pytest.raises(UserError, match=r"is a CNN.*vlm-detect explain"):
        load_vlm(str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "truncated"])
def test_a_damaged_checkpoint_is_refused_naming_the_tensor(damage: str, model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    tensors, name = load_file(path), "model.text.blocks.1.mlp.fc1.weight"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        tensors |= {"model.text.blocks.1.surplus": tensors[name].clone()} if damage == "extra" else {}
        tensors[name] = tensors[name][:-1].contiguous() if damage == "misshapen" else tensors[name]
        if damage == "missing":
            del tensors[name]
        save_file(tensors, path, metadata={"format": "pt"})
    wanted = {"extra": "surplus", "truncated": "model.safetensors"}.get(damage, name)
    with pytest.raises(UserError, match=wanted):
        load_vlm(str(model_folder))


@pytest.mark.parametrize(
    ("error_class", "words"), [(GatedRepoError, "licence at"), (RepositoryNotFoundError, "is not on")]
)
def test_hub_refusals_say_what_to_do(error_class, words: str) -> None:
    cause = error_class.__new__(error_class)
    Exception.__init__(cause, "refused")
    wrapped = OSError("could not load")
    wrapped.__cause__ = cause
    line = explain_load_error(ResolvedModel("owner/name", "owner/name"), wrapped)
    assert words in line
    assert "\n" not in line


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_packages_that_a_model_needs_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)  # timm needs torchvision itself
    with pytest.raises(ImportError) as missing:
        requires_backends("TimmWrapperModel", ["timm"])
    said = explain_load_error(ResolvedModel("gemma", str(tmp_path)), missing.value)
    assert said == "gemma needs timm and torchvision; run: pip install timm torchvision"


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_an_image_processor_of_torchvision_alone_is_refused_by_the_package(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Llama4ImageProcessor"}')
    with pytest.raises(ValueError, match="torchvision") as missing:
        load_untrusted(AutoImageProcessor, str(tmp_path), backend="pil")
    said = explain_load_error(ResolvedModel("llama", str(tmp_path)), missing.value)
    assert said == "llama needs torchvision; run: pip install torchvision"
