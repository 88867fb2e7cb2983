"""How the nano models lie on disk: half-precision files under configurations that say float32."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def halve(folder: Path) -> None:
    """Rewrite every safetensors file under ``folder`` in fp16.

    Half the size in the repository, while diffusers' plain ``from_pretrained`` gives every part the float32 that its
    configuration names, which a CPU computes with. The moondream classes keep the file's dtype unless told another.
    """
    for path in folder.rglob("*.safetensors"):
        weights = {name: weight.half() for name, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes files that only their owner may read
