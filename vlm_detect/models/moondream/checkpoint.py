"""Checkpoint layouts: what the tensors are called on disk, and reading them without holding them twice.

On disk our layout is the official one of 2025: the module tree has the same names, and only the token embedding, a bare
parameter there and an `nn.Embedding` here, is renamed, which transformers does on the way in and out. The layout of the
first 2025 files, names without the `model.` prefix, and the caches that the official code saves by accident are
understood as well. Source: vikhyat/moondream `weights.py`; all names in tests/golden/moondream2*_keys.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from ...config import write_json
from .configuration import HUB_ID, MODEL_TYPE, to_official

if TYPE_CHECKING:
    from .modeling import MoondreamForConditionalGeneration

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
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


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
    return name, False


def to_legacy_name(official: str) -> tuple[str, bool]:
    """The inverse of `to_official_name` for the legacy layout."""
    name = official
    for block, parts in _LEGACY_PARTS.items():
        if name.startswith(block):
            for theirs, ours in parts:
                name = name.replace(ours, theirs)
    for legacy, prefix in _LEGACY_PREFIXES:
        if name.startswith(prefix):
            return legacy + name.removeprefix(prefix), official in _TRANSPOSED
    raise ValueError(f"{official} is no tensor of moondream2")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint file that is read when transformers indexes it, as it does with safetensors' slices."""

    handle: Any
    name: str
    transposed: bool
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor = self.handle.get_tensor(self.name)
        return (tensor.T.contiguous() if self.transposed else tensor)[index]


def find_weights(path_or_id: str | Path, **hub_options: Any) -> list[Path]:
    """The safetensors files of a folder, or of a Hub repository, which are fetched first where they are not cached."""
    folder = Path(path_or_id)
    if not folder.is_dir():
        patterns = ["config.json", "model*.safetensors"]
        folder = Path(snapshot_download(str(path_or_id), allow_patterns=patterns, **hub_options))
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{path_or_id}: no model*.safetensors there (other formats can run code and are not read)")
    return files


def open_weights(files: list[Path], dtype: torch.dtype | None) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint under its official name, none of them read yet.

    Where the dtype stays, tensors are views of the memory-mapped file. A cast to `dtype` reads each tensor on its own
    instead: touched pages of a mapping count as memory beside the cast copy until the file is closed.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _open_file(file, dtype):
            if name in found:
                raise ValueError(f"the checkpoint has {name} twice, as {found[name].name} and as {tensor.name}")
            found[name] = tensor
    return found


def _open_file(file: Path, dtype: torch.dtype | None) -> Iterator[tuple[str, StoredTensor]]:
    try:
        handle = safe_open(file, framework="pt", backend="mmap")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  not a dict
        stored = {_DTYPES.get(part.get_dtype()) for part in slices.values()}
        if dtype is not None and stored != {dtype}:
            handle = safe_open(file, framework="pt", backend="pread")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is damaged, fetch it again: {error}") from error
    for stored_name, part in slices.items():
        name, transposed = to_official_name(stored_name)
        if name.endswith((".kv_cache.k_cache", ".kv_cache.v_cache")):
            continue  # working memory that the official code saves after any inference
        if name.endswith((".packed", ".zero_point")):
            raise ValueError(
                f"{file.name} is a quantised moondream release (packed int4: {stored_name}), which cannot be tuned or "
                f"converted; use the full-precision {HUB_ID} and quantise it with bitsandbytes"
            )
        if part.get_dtype() not in _DTYPES:
            raise ValueError(f"{stored_name} is stored as {part.get_dtype()}; {', '.join(_DTYPES)} can be read")
        shape = tuple(reversed(part.get_shape())) if transposed else tuple(part.get_shape())
        yield name, StoredTensor(handle, stored_name, transposed, shape, _DTYPES[part.get_dtype()])


def stored_dtype(tensors: dict[str, StoredTensor]) -> torch.dtype:
    """The dtype of most of a checkpoint's elements."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    return max(counts, key=lambda dtype: counts[dtype])


def check_tensors(tensors: dict[str, StoredTensor], wanted: dict[str, torch.Size]) -> None:
    """Raise ValueError naming the tensors that a checkpoint has too few, too many, or in another shape."""
    wanted = {name.replace("text.wte.weight", "text.wte"): shape for name, shape in wanted.items()}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"the checkpoint lacks {_some(missing)}")
    if surplus := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(f"the checkpoint has the unknown {_some(surplus)}")
    for name, tensor in tensors.items():
        if tensor.shape != tuple(wanted[name]):
            raise ValueError(
                f"the checkpoint's {name} is {list(tensor.shape)} where the configuration says {list(wanted[name])}"
            )


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
