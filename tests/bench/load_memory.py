"""Peak resident memory from load to the end of the first forward, as a ratio to the weights' size in memory.

    python tests/bench/load_memory.py [--size_gb 1.2] [--out FILE.json]

A checkpoint with random weights is generated and loaded by a fresh process: in the released layout, in it with a cast
to float32, and in the legacy layout. What Python and its libraries hold before is measured in the same process and
taken off. At most 1.2 is the goal, with a cast measured against the size after it; below 1 means that the forward left
parts of the mapped file untouched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.machine import machine_name
from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration

LIMIT = 1.2
LEGACY_NAMES = Path(__file__).parents[1] / "golden" / "moondream2_legacy_keys.json"

_CHILD = """
import sys, torch
from PIL import Image
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
torch.zeros(8, 8) @ torch.zeros(8, 8)
before = status("VmRSS")
dtype = getattr(torch, sys.argv[2])
model = MoondreamForConditionalGeneration.from_pretrained(sys.argv[1], dtype=dtype).eval()
inputs = MoondreamProcessor.from_pretrained(sys.argv[1])(images=[Image.new("RGB", (64, 64))], prompt_ids=[[1, 2, 3]])
with torch.inference_mode():
    model(**inputs, logits_to_keep=1)
size = sum(p.nbytes for p in model.parameters())
print("RESULT", (status("VmHWM") - before) / size, size)
"""


@dataclass(frozen=True)
class Config:
    size_gb: float = field(default=1.2, metadata={"help": "Size of the generated checkpoint in bfloat16."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records = []
    for layout, dtype in (("official", "bfloat16"), ("official", "float32"), ("legacy", "bfloat16")):
        ratio, size = measure(config.size_gb, layout, dtype)
        records.append(
            {
                "bench": "load_memory",
                "setting": {"layout": layout, "stored": "bfloat16", "loaded": dtype, "bytes": size},
                "ratio": round(ratio, 3),
                "ceiling": 1.0,
                "against": "size of the parameters in memory",
                "command": " ".join(["python tests/bench/load_memory.py", *argv]),
                "commit": git_commit(),
                "device": machine_name("cpu"),
            }
        )
        print(f"{layout} to {dtype}: {ratio:.3f} of {size / 1e9:.2f} GB (goal: at most {LIMIT})")
    if config.out:
        write_json(config.out, records)


def measure(size_gb: float, layout: str, dtype: str) -> tuple[float, int]:
    """(peak memory of loading and one forward over the parameters' size, that size in bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), size_gb, layout)
        command = [sys.executable, "-c", _CHILD, folder, dtype]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    ratio, size = line.split()[1:]
    return float(ratio), int(size)


def generate(folder: Path, size_gb: float, layout: str) -> None:
    """Write a checkpoint of about `size_gb`, with a small tower so that its forward costs little."""
    wide: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32}
    layer_bytes = 2 * (4 * 2048**2 + 2 * 2048 * 8192)
    layers = max(1, round((size_gb * 1e9 - 4 * 51200 * 2048) / layer_bytes))
    small: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    model_config = MoondreamConfig(
        text_config={**wide, "num_hidden_layers": layers},
        vision_config={
            **small,
            "num_attention_heads": 1,
            "crop_size": 56,
            "overlap_margin": 1,
            "projection_hidden_size": 256,
        },
        region_config={"intermediate_size": 64},
    )
    with torch.device("meta"):
        model = MoondreamForConditionalGeneration(model_config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_official(folder)
    if layout == "legacy":
        legacy_names = json.loads(LEGACY_NAMES.read_text(encoding="utf-8"))["map"]
        tensors = load_file(folder / "model.safetensors")
        renamed = {
            legacy: tensors[facts["to"]].T.contiguous() if facts["transpose"] else tensors[facts["to"]]
            for legacy, facts in legacy_names.items()
            if facts["to"] in tensors
        }
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    run_main(main)
