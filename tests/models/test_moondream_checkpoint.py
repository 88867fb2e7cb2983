"""Every tensor of the released checkpoints, in every layout they come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories import tiny_moondream
from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration
from vlm_detect.models.moondream.checkpoint import StoredTensor, check_tensors, to_official_name

GOLDEN = Path(__file__).parent.parent / "golden"


def official_keys() -> dict[str, tuple[int, ...]]:
    keys = json.loads((GOLDEN / "moondream2_keys.json").read_text())["keys"]
    return {name: tuple(facts["shape"]) for name, facts in keys.items()}


def legacy_map() -> dict[str, dict]:
    return json.loads((GOLDEN / "moondream2_legacy_keys.json").read_text())["map"]


def full_size_shapes() -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = MoondreamForConditionalGeneration(MoondreamConfig())
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    return {name: StoredTensor(None, name, False, shape, torch.bfloat16) for name, shape in shapes.items()}


def test_the_full_size_model_accounts_for_every_released_key() -> None:
    shapes = official_keys()
    assert len(shapes) == 592
    ours = full_size_shapes()
    check_tensors(stored(shapes), ours)
    assert sum(shape.numel() for shape in ours.values()) == 1_927_237_104


def test_every_legacy_key_is_mapped() -> None:
    table = legacy_map()
    assert len(table) == 592
    for legacy, facts in table.items():
        assert to_official_name(legacy) == (facts["to"], facts["transpose"])
    assert {facts["to"] for facts in table.values()} == official_keys().keys()


@pytest.mark.parametrize("layout", ["official", "bare", "legacy", "compiled", "with caches", "two files"])
@pytest.mark.parametrize("cast", [False, True])
def test_each_layout_gives_the_same_weights(layout: str, cast: bool, tmp_path: Path) -> None:
    model = tiny_moondream().to(torch.bfloat16)
    model.save_official(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if layout == "bare":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    elif layout in ("legacy", "compiled"):
        legacy_names = {facts["to"]: (legacy, facts["transpose"]) for legacy, facts in legacy_map().items()}
        renamed = {}
        for name, tensor in tensors.items():
            legacy, transpose = legacy_names[name]
            if layout == "compiled":
                legacy = legacy.replace(".mlp.", ".mlp._orig_mod.").replace("visual.", "visual._orig_mod.", 1)
            renamed[legacy] = tensor.T.contiguous() if transpose else tensor
        tensors = renamed
    elif layout == "with caches":
        tensors["model.text.blocks.0.kv_cache.k_cache"] = torch.zeros(1, 1, 4, 4)
    if layout == "two files":
        names = sorted(tensors)
        for i, part in enumerate((names[::2], names[1::2])):
            save_file({name: tensors[name] for name in part}, tmp_path / f"model-0000{i + 1}-of-00002.safetensors")
        path.unlink()
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    dtype = torch.float32 if cast else None
    again = MoondreamForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert again.dtype == (torch.float32 if cast else torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(again.dtype)), name


def test_packed_weights_are_refused_by_name(tmp_path: Path) -> None:
    tiny_moondream().save_official(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors.pop("model.text.blocks.0.mlp.fc1.weight")
    tensors["model.text.blocks.0.mlp.fc1.weight.packed"] = weight.to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"packed int4: model\.text\.blocks\.0\.mlp\.fc1\.weight\.packed"):
        MoondreamForConditionalGeneration.from_pretrained(tmp_path)


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    tiny_moondream().save_official(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no model"):
        MoondreamForConditionalGeneration.from_pretrained(tmp_path)
