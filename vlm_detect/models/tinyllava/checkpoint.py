"""Checkpoint layouts of TinyLLaVA: the released one, a Factory run's output folder, and our own.

    released    language_model.model.layers.N..., vision_tower._vision_tower.vision_model..., connector._connector.0...
    run, full   the same, or one `pytorch_model.bin` each in language_model/, vision_tower/ and connector/
    run, LoRA   adapter_model.safetensors next to those three, or next to the tuned connector alone
    ours        the names of transformers' LLaVA

A LoRA is merged into the tensors as they are read, in float32 and rounded once. Torch files are read with
`weights_only`. Source: TinyLLaVA_Factory `load_model.py`, `training_recipe/`; all names of the release in
tests/golden/tinyllava_keys.json.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from vlm_detect.config import write_json
from vlm_detect.errors import first_line
from vlm_detect.models.bases import base_of
from vlm_detect.models.stored import LazyTensor, StoredTensor, dtype_of, fetch, read_safetensors
from vlm_detect.models.tinyllava.configuration import is_official, to_official

if TYPE_CHECKING:
    from vlm_detect.models.tinyllava.modeling import TinyLlavaForConditionalGeneration

# Released name -> transformers' name, by prefix.
_PREFIXES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower._vision_tower.vision_model.", "model.vision_tower."),
    ("connector._connector.0.", "model.multi_modal_projector.linear_1."),
    ("connector._connector.2.", "model.multi_modal_projector.linear_2."),
    ("model.language_model.model.", "model.language_model."),  # as transformers saves a LLaVA
)
_PARTS = {  # folder of a Factory run -> what its names lack
    "language_model": "language_model.",
    "vision_tower": "vision_tower._vision_tower.",
    "connector": "connector.",
}
_FILES = ["config.json", "model*.safetensors", "pytorch_model*.bin", "adapter_*", "*/pytorch_model.bin"]
_LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight$")


def to_llava_name(released: str) -> str:
    """The name in transformers' LLaVA of a tensor of the release; our own names stay."""
    for theirs, ours in _PREFIXES:
        if released.startswith(theirs):
            return ours + released.removeprefix(theirs)
    return released


def to_released_name(name: str) -> str:
    """The inverse of `to_llava_name`."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is no tensor of a TinyLLaVA")


def is_factory_folder(path: str | Path) -> bool:
    """Whether a folder was written by TinyLLaVA_Factory (a run of ours has no such `config.json`)."""
    file = Path(path) / "config.json"
    return file.is_file() and is_official(json.loads(file.read_text(encoding="utf-8")))


def open_checkpoint(path_or_id: str | Path, dtype: torch.dtype | None, **hub_options: Any) -> dict[str, LazyTensor]:
    """Every tensor under transformers' name, none of them read yet; they will be cast to `dtype`.

    Raises:
        ValueError: where there are no weights, a file is damaged, or a LoRA does not fit.
    """
    folder = fetch(path_or_id, _FILES, **hub_options)
    tensors: dict[str, LazyTensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        for name, shape, stored, handle in read_safetensors(file, dtype):
            tensors[to_llava_name(name)] = StoredTensor(handle, name, False, shape, dtype_of(stored, name))
    for file in sorted(folder.glob("pytorch_model*.bin")) if not tensors else []:
        tensors |= _read_torch(file, "")
    has_adapter = (folder / "adapter_config.json").is_file()
    if has_adapter and not tensors and not (folder / "language_model" / "pytorch_model.bin").is_file():
        tensors = open_checkpoint(base_of(folder), dtype)
    for part, prefix in _PARTS.items():
        if (file := folder / part / "pytorch_model.bin").is_file():
            tensors |= _read_torch(file, prefix)
    if has_adapter:
        tensors |= _merged(tensors, folder)
    if not tensors:
        raise ValueError(f"{path_or_id}: no weights (model*.safetensors, or the output folder of a Factory run)")
    return tensors


def _read_torch(file: Path, prefix: str) -> dict[str, LazyTensor]:
    try:
        stored = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler and zip reader do
        reason = first_line(error)
        raise ValueError(f"{file.parent.name}/{file.name} cannot be read safely: {reason}") from error
    return {to_llava_name(prefix + name.replace(".base_layer", "")): tensor for name, tensor in stored.items()}


@dataclass(frozen=True)
class MergedTensor:
    """A weight (out, in) with its LoRA: W + scale * B A, computed in float32 when it is read."""

    base: LazyTensor
    a: torch.Tensor  # (r, in)
    b: torch.Tensor  # (out, r)
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        weight = self.base[...]
        return (weight.float() + self.scale * (self.b.float() @ self.a.float())).to(weight.dtype)[index]


def _merged(tensors: dict[str, LazyTensor], folder: Path) -> dict[str, LazyTensor]:
    """The weights that the adapter in `folder` changes."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ValueError(f"{folder}: only plain LoRA adapters of TinyLLaVA_Factory are merged, no DoRA, no patterns")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if (found := _LORA.match(name)) is None:
            raise ValueError(f"{folder}: the adapter's {name} is no part of a LoRA")
        pairs.setdefault(f"{to_llava_name(found[1])}.weight", {})[found[2]] = tensor
    merged: dict[str, LazyTensor] = {}
    for name, pair in pairs.items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != (pair["B"].shape[0], pair["A"].shape[1]):
            raise ValueError(f"{folder}: the adapter is for another model: {name} is {shape} there")
        merged[name] = MergedTensor(tensors[name], pair["A"], pair["B"], scale)
    return merged


def save_official(model: TinyLlavaForConditionalGeneration, folder: Path, tokenizer: Any) -> None:
    """Write Factory's `config.json`, `model.safetensors` and tokenizer; tensors keep their dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    tensors = {to_released_name(name): tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    pad_token = tokenizer.pad_token or tokenizer.eos_token
    write_json(folder / "config.json", to_official(model.config, pad_token, pad_id))
