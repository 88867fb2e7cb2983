"""An adapter finds its base wherever it goes, and never takes a folder's name for one of the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.train.toys import save_tiny_model
from vlm_detect.errors import UserError
from vlm_detect.models import registry
from vlm_detect.models.bases import base_of
from vlm_detect.models.registry import load_vlm, resolve_id
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import LoraOptions


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "model_info", lambda name, **options: pytest.fail(f"the Hub was asked for {name}"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, in which an adapter was trained on it by its relative path."""
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "models" / "base")
    vlm = load_vlm("models/base", device="cpu")
    add_lora(vlm, LoraOptions(lora_r=2))
    vlm.model.save_pretrained(tmp_path / "runs" / "mine")
    return tmp_path


def record(run: Path, base: Any) -> None:
    file = run / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def test_a_base_given_by_a_relative_path_is_found_from_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert base_of(home / "runs" / "mine") == str(home / "models" / "base")
    load_vlm(str(home / "runs" / "mine"), device="cpu")
    shutil.copytree(home / "runs" / "mine", home / "elsewhere" / "copy")
    load_vlm("copy", device="cpu")


@pytest.mark.parametrize("base", ["models/base", "./models/base", "../models/base", "models/a/base", "~/models/base"])
def test_a_moved_base_is_reported_with_the_remedy(home: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record(home / "runs" / "mine", base)
    (home / "models" / "base").rename(home / "models" / "moved")
    for cwd in (home, home / "runs", home / "runs" / "mine"):
        monkeypatch.chdir(cwd)
        with pytest.raises(UserError, match=r"does not exist; give its new path with --model BASE --adapter .*mine"):
            load_vlm(str(home / "runs" / "mine"), device="cpu")
    load_vlm(str(home / "models" / "moved"), adapter=home / "runs" / "mine", device="cpu")


def test_a_moved_absolute_base_is_reported_too(home: Path) -> None:
    (home / "models").rename(home / "weights")
    with pytest.raises(UserError, match=r"was the folder .*models/base, which does not exist; give its new path"):
        load_vlm("runs/mine", device="cpu")


def test_a_relative_base_of_an_earlier_version_is_found_from_the_folders_of_its_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(home / "runs" / "mine", "models/base")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert base_of(home / "runs" / "mine") == str(home / "models" / "base")


@pytest.mark.parametrize("base", [None, "", 7, ["a"]])
def test_an_adapter_that_names_no_base(home: Path, base: Any) -> None:
    record(home / "runs" / "mine", base)
    with pytest.raises(UserError, match=r"has no base model; give its new path with --model BASE --adapter"):
        load_vlm("runs/mine", device="cpu")


def test_an_unavailable_hub_base_is_reported_with_the_remedy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(registry, "model_info", unreachable)
    record(home / "runs" / "mine", "somebody/model")
    with pytest.raises(UserError, match=r"somebody/model .* give its new path with --model BASE --adapter runs/mine"):
        load_vlm("runs/mine", device="cpu")
    record(home / "runs" / "mine", "word")
    with pytest.raises(UserError, match=r"'word' is neither a folder nor a Hub id.*--adapter runs/mine"):
        load_vlm("runs/mine", device="cpu")


def test_a_missing_folder_is_not_a_hub_id(home: Path) -> None:
    for name in ("runs/typo", "models/other"):
        with pytest.raises(UserError, match=rf"the folder {name.split('/')[0]} has no {name.split('/')[1]}"):
            resolve_id(name)
    assert resolve_id("somebody/model").path_or_id == "somebody/model"


def test_the_base_of_a_factory_adapter_is_not_a_hub_id_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_detect.models.tinyllava.checkpoint import open_checkpoint

    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "lora").mkdir(parents=True)
    (tmp_path / "output" / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "output/base"}')
    with pytest.raises(UserError, match="output/base, which does not exist"):
        open_checkpoint(tmp_path / "output" / "lora", None)
