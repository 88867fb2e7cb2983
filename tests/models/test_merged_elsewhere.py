"""A merged generic run is an ordinary folder of transformers: what vLLM, TGI and plain transformers load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image

from tests.models.tiny_chat import save_tiny
from vlm_detect.models.export import export
from vlm_detect.models.registry import load_vlm

LOGITS = """
import sys, numpy, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=False).eval()
inputs = {name: torch.from_numpy(values) for name, values in numpy.load(sys.argv[2]).items()}
with torch.no_grad():
    numpy.save(sys.argv[3], model(**inputs).logits.numpy())
assert not any(name.startswith("vlm_detect") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2_vl", "llava"])
def test_a_merged_run_needs_nothing_of_ours(architecture, tmp_path: Path) -> None:
    base = save_tiny(architecture, tmp_path / "base")
    vlm: Any = load_vlm(str(base), dtype=torch.float32, device="cpu")
    inputs = dict(vlm.template.inputs(Image.new("RGB", (40, 56), "teal")))
    config = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False)
    config.base_model_name_or_path = str(base)
    model = get_peft_model(vlm.model, config)
    model.save_pretrained(tmp_path / "run")
    vlm.processor.save_pretrained(tmp_path / "run")
    with torch.no_grad():
        tuned = model(**inputs).logits
        with model.disable_adapter():
            assert (tuned - model(**inputs).logits).abs().max() > 0.01, "the LoRA changes nothing: nothing was tested"
    export(str(tmp_path / "run"), "merged", tmp_path / "out")
    np.savez(tmp_path / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    files = [str(tmp_path / name) for name in ("out", "inputs.npz", "logits.npy")]
    subprocess.run([sys.executable, "-c", LOGITS, *files], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), tuned.numpy(), atol=1e-4)

    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    (name,) = stored["architectures"]  # by which vLLM chooses its own implementation
    assert hasattr(transformers, name)
    described = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert hasattr(transformers, described["processor_class"])
    for file in (tmp_path / "out").glob("*.json"):
        assert "auto_map" not in file.read_text(), f"{file.name} asks for code of a repository"
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
