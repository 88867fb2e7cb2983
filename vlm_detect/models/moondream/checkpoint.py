"""Checkpoint layouts: what the tensors are called on disk, and reading them without holding them twice.

On disk our layout is the official one of 2025: the module tree has the same names, and only the token embedding, a bare
parameter there and an `nn.Embedding` here, is renamed, which transformers does on the way in and out. The layout of the
first 2025 files, names without the `model.` prefix, and the caches that the official code saves by accident are
understood as well. Source: vikhyat/moondream `weights.py`; all names in tests/golden/moondream2*_keys.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from vlm_detect.config import write_json
from vlm_detect.models import stored
from vlm_detect.models.moondream.configuration import HUB_ID, MODEL_TYPE, to_official
from vlm_detect.models.stored import StoredTensor

if TYPE_CHECKING:
    from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration

# Legacy name -> official name, by prefix; the first that fits.
_LEGACY_PREFIXES = (
    ("vision_encoder.encoder.model.visual.pos_embed", "model.vision.pos_emb"),
    ("vision_encoder.encoder.model.visual.patch_embed.linear.", "model.vision.patch_emb."),
    ("vision_encoder.encoder.model.visual.norm.", "model.vision.post_ln."),
    ("vision_encoder.encoder.model.visual.blocks.", "model.vision.blocks."),
    ("vision_encoder.projection.mlp.", "model.vision.proj_mlp."),
    ("text_model.transformer.embd.wte.weight", "model.text.wte"),
    ("text_model.transformer.h.", "model.text.blocks."),
    ("text_model.lm_head.ln.", "model.text.post_ln."),
    ("text_model.lm_head.linear.", "model.text.lm_head."),
    ("region_model.coordinate_features.weight", "model.region.coord_features"),
    ("region_model.size_features.weight", "model.region.size_features"),
    ("region_model.coordinate_", "model.region.coord_"),
    ("region_model.", "model.region."),
)
# ... and within a block, for the tower and for the decoder.
_LEGACY_PARTS = {
    "model.vision.blocks.": ((".norm1.", ".ln1."), (".norm2.", ".ln2.")),
    "model.text.blocks.": ((".mixer.Wqkv.", ".attn.qkv."), (".mixer.out_proj.", ".attn.proj.")),
}
_TRANSPOSED = {"model.region.coord_features", "model.region.size_features"}  # in the legacy layout


def register_layout() -> None:
    """Teach transformers the official key names, for loading and for saving."""
    renaming = WeightRenaming(source_patterns="text.wte", target_patterns="text.wte.weight")
    register_checkpoint_conversion_mapping(MODEL_TYPE, [renaming], overwrite=True)


def to_official_name(stored: str) -> tuple[str, bool]:
    """The official name of a stored tensor, and whether it is stored transposed."""
    name = stored.replace("._orig_mod", "")
    for legacy, official in _LEGACY_PREFIXES:
        if name.startswith(legacy):
            name = official + name.removeprefix(legacy)
            for block, parts in _LEGACY_PARTS.items():
                if name.startswith(block):
                    for theirs, ours in parts:
                        name = name.replace(theirs, ours)
            return name, name in _TRANSPOSED
    if name.startswith(("vision.", "text.", "region.")):  # saved from the bare model
        name = f"model.{name}"
    return name.replace("text.wte.weight", "text.wte"), False  # as the Trainer's checkpoints have it


def open_weights(files: list[Path], dtype: torch.dtype | None) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint under its official name, none of them read yet; they will be cast to `dtype`."""
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _open_file(file, dtype):
            if name in found:
                raise ValueError(f"the checkpoint has {name} twice, as {found[name].name} and as {tensor.name}")
            found[name] = tensor
    return found


def _open_file(file: Path, dtype: torch.dtype | None) -> Iterator[tuple[str, StoredTensor]]:
    for stored_name, shape, stored_as, handle in stored.read_safetensors(file, dtype):
        name, transposed = to_official_name(stored_name)
        if name.endswith((".kv_cache.k_cache", ".kv_cache.v_cache")):
            continue  # working memory that the official code saves after any inference
        if name.endswith((".packed", ".zero_point")):
            raise ValueError(
                f"{file.name} is a quantised moondream release (packed int4: {stored_name}), which cannot be tuned or "
                f"converted; use the full-precision {HUB_ID} and quantise it with bitsandbytes"
            )
        shape = tuple(reversed(shape)) if transposed else shape
        yield name, StoredTensor(handle, stored_name, transposed, shape, stored.dtype_of(stored_as, stored_name))


def check_tensors(tensors: dict[str, StoredTensor], wanted: dict[str, torch.Size]) -> None:
    """Raise ValueError naming the tensors that a checkpoint has too few, too many, or in another shape."""
    stored.check_tensors(tensors, {name.replace("text.wte.weight", "text.wte"): at for name, at in wanted.items()})


def save_official(model: MoondreamForConditionalGeneration, folder: Path) -> None:
    """Write official `config.json` and `model.safetensors`; tensors keep their dtype and, unless tuned, their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name.replace("text.wte.weight", "text.wte"): tensor.detach().contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", to_official(model.config))
