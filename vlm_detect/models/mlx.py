"""Folders that mlx-vlm reads on Apple's chips: the official layout of moondream, the layout of LLaVA before 2025.

mlx-vlm has networks of its own, with the sizes in its own words and one activation a family. What it would compute
otherwise is refused. Its version 0.7.10 gives a tiny moondream's and a tiny LLaVA's logits within 1e-5 in float32
(`tests/models/test_mlx.py`). Of moondream that holds for images of one tile a side: it pools the tiles of larger ones
over other places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vlm_detect.config import make_readable, write_json
from vlm_detect.errors import UserError
from vlm_detect.models.moondream.configuration import MoondreamConfig


def describe_moondream(folder: Path, config: MoondreamConfig) -> None:
    """Add the sizes in mlx-vlm's words to the `config.json` of an official folder."""
    text, vision = config.text_config, config.vision_config
    sizes: dict[str, Any] = {
        "text_config": {
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "rope_theta": text.rope_theta,
            "partial_rotary_factor": text.rotary_dim / text.head_dim,
            "rms_norm_eps": text.layer_norm_eps,
        },
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "crop_size": vision.crop_size,
            "max_crops": vision.max_crops,
            "overlap_margin": vision.overlap_margin,
            "in_channels": vision.num_channels,
            "proj_inner_dim": vision.projection_hidden_size,
            "proj_out_dim": vision.projection_size,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        "eos_token_id": config.eos_token_id,
        "bos_token_id": config.bos_token_id,
    }
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**stored, **sizes})


def check_llava(config: Any, name: str) -> None:
    """`UserError` for a LLaVA that mlx-vlm would compute otherwise: it knows CLIP with a LLaMA."""
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    is_known = (
        (text.model_type, vision.model_type, vision.hidden_act) == ("llama", "clip_vision_model", "quick_gelu")
        and not text.attention_bias
        and not text.mlp_bias
        and text.head_dim == text.hidden_size // text.num_attention_heads
        and rope["rope_type"] == "default"
        and config.projector_hidden_act == "gelu"
    )
    if not is_known:
        raise UserError(
            f"{name}: mlx-vlm computes LLaVA with a CLIP tower and a plain LLaMA alone; this one has "
            f"{vision.model_type} ({vision.hidden_act}) and {text.model_type}: use --to merged"
        )


def rewrite_llava(folder: Path, config: Any) -> None:
    """Turn a folder of transformers into mlx-vlm's: names of the tower's tensors, and the base of the rotation."""
    for path in folder.glob("*.safetensors"):
        tensors = {_as_before(name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        make_readable(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        record = json.loads(index.read_text(encoding="utf-8"))
        record["weight_map"] = {_as_before(name): file for name, file in record["weight_map"].items()}
        write_json(index, record)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored["text_config"]["rope_theta"] = config.text_config.rope_parameters["rope_theta"]
    write_json(folder / "config.json", stored)


def _as_before(name: str) -> str:
    tower, inner = "vision_tower.", "vision_tower.vision_model."
    return name if not name.startswith(tower) or name.startswith(inner) else inner + name.removeprefix(tower)
