"""Cached embeddings: the losses of the live path, a pass that resumes, another name for another tower."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError

from tests.factories import tiny_vlm
from tests.train.toys import toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.train import features as features_module
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions, QuestionOptions


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features_module, "CHUNK", 4)


@pytest.fixture
def vlm():
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions())
    return vlm


@pytest.fixture
def units():
    return Units(toy_pairs(5), QuestionOptions(questions_per_image=2))


def test_losses_equal_the_live_path(vlm, units, tmp_path):
    features = Features.build(vlm, units.images, tmp_path)
    assert len(list(features.folder.iterdir())) == 3  # ten images, four a file
    some = [units[0, i] for i in (4, 0, 2)]
    live, cached = Collator(vlm, pack=True)(some), Collator(vlm, pack=True, features=features)(some)
    assert "prepared" not in cached
    with torch.no_grad():
        torch.testing.assert_close(
            answer_loss(vlm, vlm.model, cached), answer_loss(vlm, vlm.model, live), atol=1e-5, rtol=0
        )


def test_a_second_build_reads_the_cache_and_a_stopped_one_resumes(vlm, units, tmp_path, monkeypatch):
    folder = Features.build(vlm, units.images, tmp_path).folder
    (folder / "features-00001.safetensors").unlink()
    written = []
    write = features_module._write
    monkeypatch.setattr(features_module, "_write", lambda *given: written.append(given[2].name) or write(*given))
    Features.build(vlm, units.images, tmp_path)
    Features.build(vlm, units.images, tmp_path)
    assert written == ["features-00001.safetensors"]


def test_two_runs_may_make_the_same_cache_at_once(vlm, units, tmp_path, monkeypatch):
    save, reentered = features_module.save_file, []

    def save_while_another_run_does(tensors, path, metadata):
        if not reentered:
            reentered.append(path)
            Features.build(vlm, units.images, tmp_path)
        save(tensors, path, metadata)

    monkeypatch.setattr(features_module, "save_file", save_while_another_run_does)
    features = Features.build(vlm, units.images, tmp_path)
    assert reentered
    assert sorted(file.name for file in features.folder.iterdir()) == [
        f"features-0000{i}.safetensors" for i in range(3)
    ]


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(vlm, units, tmp_path, monkeypatch):
    def no_space(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(features_module, "save_file", no_space)
    with pytest.raises(UserError, match=r"no space is left on the disk .* --features_dir"):
        Features.build(vlm, units.images, tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_processes_share_the_work(vlm, units, tmp_path):
    first = Features.build(vlm, units.images, tmp_path, process=0, n_processes=2)
    assert len(list(first.folder.iterdir())) == 2
    second = Features.build(vlm, units.images, tmp_path, process=1, n_processes=2)
    assert first == second
    assert first.read(list(first.places))["image_embeds"].shape == (10, 16, 64)


def test_another_tower_or_another_image_has_another_cache(vlm, units, tmp_path):
    folder = Features.build(vlm, units.images, tmp_path).folder
    other = tiny_vlm(seed=1)
    add_lora(other, LoraOptions())
    assert Features.build(other, units.images, tmp_path).folder != folder
    assert Features.build(vlm, Units(toy_pairs(5, seed=9), QuestionOptions()).images, tmp_path).folder != folder


def test_a_trained_tower_is_refused(units, tmp_path):
    vlm = tiny_vlm()
    add_lora(vlm, LoraOptions(lora_targets="all-linear+vision"))
    with pytest.raises(UserError, match="needs a frozen tower"):
        Features.build(vlm, units.images, tmp_path)


def test_a_damaged_file_is_named(vlm, units, tmp_path):
    features = Features.build(vlm, units.images, tmp_path)
    (features.folder / "features-00000.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"features-00000\.safetensors cannot be read"):
        features.read(list(features.places)[:1])
