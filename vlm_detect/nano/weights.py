"""The nano models on disk: half-precision files with configurations that say float32 and name no folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from vlm_detect.config import make_readable


def halve(folder: Path) -> None:
    """Rewrite every safetensors file under ``folder`` in fp16.

    This halves the size in the repository. Diffusers' ``from_pretrained`` converts every part to the float32 of its
    configuration, which a CPU computes with. The moondream classes keep the file's dtype unless another is given.
    """
    for path in folder.rglob("*.safetensors"):
        weights = {name: weight.half() for name, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        make_readable(path)


def forget_paths(folder: Path) -> None:
    """Remove the local path of its source from every configuration under ``folder``."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "is_local")}
        if kept != config:
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
