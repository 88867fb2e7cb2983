"""export --to mlx: what mlx-vlm computes of the folder (where it is installed), and what it would compute otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.models.test_export import TEXT, make_run
from tests.models.tiny_chat import save_tiny
from vlm_detect.errors import UserError
from vlm_detect.models.export import export
from vlm_detect.models.registry import load_vlm


def photo(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tiny_llava(tmp_path: Path) -> Path:
    """As a model that was tuned in full."""
    folder = save_tiny("llava", tmp_path / "llava")
    (folder / "run.json").write_text("{}")
    return folder


def in_mlx(folder: Path, **inputs: Any) -> np.ndarray:
    mx = pytest.importorskip("mlx.core", reason="needs mlx (Linux: mlx[cpu])")
    utils = pytest.importorskip("mlx_vlm.utils", reason="needs mlx-vlm")
    mx.set_default_device(mx.cpu)
    arrays = {name: mx.array(one) if isinstance(one, np.ndarray) else one for name, one in inputs.items()}
    return np.array(utils.load_model(folder)(arrays.pop("ids"), **arrays).logits)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 16), (20, 60)])
def test_moondreams_logits_in_mlx(size, tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=TEXT)
    export(str(run), "mlx", tmp_path / "out")
    vlm = load_vlm(str(run), dtype=torch.float32, device="cpu")
    inputs = vlm.processor(images=[photo(size)], prompt_ids=[[1, 2, 3, 12, 15]], return_tensors="pt")
    with torch.no_grad():
        expected = vlm.model(**inputs).logits.numpy()
    crops = inputs["pixel_values"][0].numpy().transpose(0, 2, 3, 1)
    layout = tuple(inputs["tilings"][0].tolist())
    found = in_mlx(
        tmp_path / "out",
        ids=inputs["input_ids"].numpy(),
        pixel_values=crops,
        num_crops=[len(crops)],
        crop_layouts=[layout],
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_llavas_logits_in_mlx(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    export(str(folder), "mlx", tmp_path / "out")
    vlm: Any = load_vlm(str(folder), dtype=torch.float32, device="cpu")
    inputs = vlm.template.inputs(photo((40, 30)))
    with torch.no_grad():
        expected = vlm.model(**inputs).logits.numpy()
    ids, pixels = inputs["input_ids"].numpy(), inputs["pixel_values"].numpy()
    np.testing.assert_allclose(in_mlx(tmp_path / "out", ids=ids, pixel_values=pixels, mask=None), expected, atol=1e-4)


def test_folders_have_the_names_and_sizes_that_mlx_vlm_reads(tmp_path: Path) -> None:
    run = make_run(tmp_path, target_modules=TEXT)
    export(str(run), "mlx", tmp_path / "moondream")
    config = json.loads((tmp_path / "moondream" / "config.json").read_text())
    assert config["model_type"] == "moondream1"
    assert config["text_config"]["partial_rotary_factor"] * 64 == 32
    assert config["vision_config"]["proj_inner_dim"] == 48
    folder = tiny_llava(tmp_path)
    export(str(folder), "mlx", tmp_path / "llava_mlx")
    names = load_file(tmp_path / "llava_mlx" / "model.safetensors").keys()
    towers = [name for name in names if name.startswith("vision_tower.")]
    assert towers
    assert all(name.startswith("vision_tower.vision_model.") for name in towers)
    config = json.loads((tmp_path / "llava_mlx" / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == 10000.0


def test_what_mlx_vlm_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="CLIP tower and a plain LLaMA alone"):
        export(str(folder), "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    qwen = save_tiny("qwen2_vl", tmp_path / "qwen")
    (qwen / "run.json").write_text("{}")
    with pytest.raises(UserError, match="--to mlx knows moondream and LLaVA"):
        export(str(qwen), "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
