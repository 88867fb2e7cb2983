"""Checkpoint layouts: what the keys are called on disk.

On disk our layout is the official one of 2025: the module tree has the same names, and only the token embedding, a bare
parameter there and an `nn.Embedding` here, is renamed on the way in and out. transformers applies the renaming itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from ...config import write_json
from .configuration import MODEL_TYPE, to_official

if TYPE_CHECKING:
    from .modeling import MoondreamForConditionalGeneration


def register_layout() -> None:
    """Teach transformers the official key names, for loading and for saving."""
    renaming = WeightRenaming(source_patterns="text.wte", target_patterns="text.wte.weight")
    register_checkpoint_conversion_mapping(MODEL_TYPE, [renaming], overwrite=True)


def check_loaded(info: dict[str, Any]) -> None:
    """Raise ValueError naming the tensors that a checkpoint has too few, too many, or in another shape."""
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has the unknown")):
        if names := sorted(info[kind]):
            raise ValueError(f"the checkpoint {verb} {_some(names)}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        more = f" (and {len(mismatched) - 1} more misshapen)" if len(mismatched) > 1 else ""
        raise ValueError(f"the checkpoint's {name} is {list(found)} where the configuration says {list(wanted)}{more}")


def _some(names: list[str], shown: int = 3) -> str:
    noun = "tensor" if len(names) == 1 else "tensors"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{noun} {', '.join(names[:shown])}{more}"


def save_official(model: MoondreamForConditionalGeneration, folder: Path) -> None:
    """Write official `config.json` and `model.safetensors`; tensors keep their dtype and, unless tuned, their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.replace("text.wte.weight", "text.wte"): tensor.detach().contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", to_official(model.config))
