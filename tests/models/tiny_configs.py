"""A tiny configuration of any image-text model of transformers, made of its defaults by rule.

    config = tiny_config("qwen3_vl", vocabulary=400)

Widths become 32, layers 2, heads 2; what a class derives from them (kinds of layers, of experts) it derives anew. Where
a rule does not know a type's numbers, `EXCEPTIONS` has them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

STD = 0.2  # of the random weights: large enough that every input tells in the logits
WIDTH, HEADS = 32, 2

# The first rule whose pattern is all of a name gives its value; a value of None leaves the default.
_RULES: list[tuple[str, Any]] = [
    (r"(vocab_size|vocab_size_per_layer_input)", "vocabulary"),
    (r".*(num|n)_.*experts?_per_tok|moe_topk|moe_k", 2),
    (r"(n|num)_shared_experts|moe_num_shared_experts", 1),
    (r".*num_(local_|routed_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"n_group|topk_group|n_groups", 1),
    (r"first_k_dense_replace", 1),
    (r"(swa_)?head_dim|global_head_dim|attention_head_dim|d_kv|.*_head_dim", WIDTH // HEADS),
    (r"(q|kv)_lora_rank|laurel_rank|hc_lowrank", 16),
    (r".*(num|n)_?(.*_)?(attention_|key_value_|kv_|query_)?heads|.*attention_heads|num_heads|.*n_heads", HEADS),
    (r"(num_|n_)?(.*hidden_|.*encoder_|.*decoder_|text_|vision_)?(layers|depth)|.*_depth|num_global_layers", 2),
    (r".*(intermediate_size|ffn_dim|d_ff|mlp_dim|intermediate_size_mlp|expert_dim)", 48),
    (
        r".*hidden_size|word_embed_proj_dim|d_model|embed_dim|.*embed_dim|projection_dim|.*(output|out|hidden|input|in)_dim",
        WIDTH,
    ),
    (r"max_position_embeddings|model_max_length|seq_len", 2048),
    (r"initializer_range|init_std|initializer_factor", STD),
    (r"sliding_window|attention_chunk_size|window_attn.*", 512),
]


def rule_for(name: str) -> Any:
    return next((value for pattern, value in _RULES if re.fullmatch(pattern, name)), None)


# Of a type, or of a part of it ("type.part"): numbers that no rule has.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {196: 4}, "max_value_projector_patch_to_query_dict": 4},
    "aria.vision_config": {"patch_size": 70, "image_size": 980},
    "chameleon": {
        "vocabulary_map": {"<image>": 3, **{f"IMGIMG{letter}Z": 300 + i for i, letter in enumerate("ABCDEFGH")}}
    },
    "chameleon.vq_config": {
        "num_embeddings": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "resolution": 64,
        "latent_channels": 32,
        "embed_dim": 32,
        "attn_resolutions": None,
    },
    "cohere_compass.text_config": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "full_attention": None,
        }
    },
    "deepseek_ocr2.text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "deepseek_vl_hybrid.high_res_vision_config": {"image_size": 64, "output_channels": 16, "global_attn_indexes": [0]},
    "diffusion_gemma.text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "dots3_note.text_config": {"num_key_value_heads": HEADS, "head_dim": 16, "layer_types": ["indexed_attention"] * 2},
    "dots3_note.audio_config": {
        "adapter_out_dim": WIDTH,
        "adapter_input_size": WIDTH,
        "sampling_rate": 16000,
        "feature_size": 128,
        "hop_length": 160,
    },
    "gemma3": {"mm_tokens_per_image": 4},
    "kosmos-2.5": {"latent_query_num": 4},
    "kosmos-2.5.vision_config": {"patch_embed_hidden_size": 768},
    "qwen4_exp.text_config": {
        "indexer_kv_heads": 1,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 16,
        "indexer_n_heads": 2,
    },
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "granite4_vision.vision_config": {"hidden_size": 64},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"mm_tokens_per_image": 4},
    "dots3_note.vision_config": {
        "per_layer_config": {},
        "mlp_layer_types": ["dense", "dense"],
        "adapter_out_dim": WIDTH,
        "adapter_in_dim": WIDTH,
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 3,
            "<|extra_200|>": 4,
            **{f"<|visual token 00000{i}|>": 300 + i for i in range(8)},
        }
    },
    "emu3.vq_config": {
        "codebook_size": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "latent_channels": 4,
        "embed_dim": 4,
        "hidden_size": 32,
        "attn_resolutions": [0],
    },
    "ernie4_5_vl_moe.text_config": {"moe_intermediate_size": [32, 32]},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
    },
    "got_ocr2.vision_config": {"image_size": 1024, "output_channels": 16},
    "pp_chart2table.vision_config": {"image_size": 1024, "output_channels": 16},
    "hunyuan_vl.text_config": {"head_dim": 16},
    "minicpmv4_6": {"insert_layer_id": 0},  # the layer behind which patches are merged
    "minicpmv4_7": {"insert_layer_id": 0},
    "mllama.vision_config": {
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * WIDTH,
        "num_global_layers": 1,
    },
    "mllama.text_config": {"cross_attention_layers": [1]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 5},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
}


def tiny_config(model_type: str, vocabulary: int) -> PreTrainedConfig:
    """The configuration, whose ids of special tokens are still the defaults."""
    return _shrunk(CONFIG_MAPPING[model_type](), model_type, vocabulary)


def _shrunk(default: PreTrainedConfig, path: str, vocabulary: int) -> Any:
    values: dict[str, Any] = {}
    fields = {field.name for field in dataclasses.fields(default)}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            values[name] = _shrunk(value, f"{path}.{name}", vocabulary)
        elif name == "vision_config" and value is None:
            made = type(default).sub_configs_defaults.get(name)
            if made is not None:
                part = made() if isinstance(made, type) else CONFIG_MAPPING[made.model_type]()
                values[name] = _shrunk(part, f"{path}.{name}", vocabulary)
        elif name == "downsample_channels":
            values[name] = [16, WIDTH]
        elif name == "deepstack_visual_indexes":
            values[name] = [0]
        elif name in ("pad_token_id", "padding_idx") and value is not None:
            values[name] = 0
        elif isinstance(value, int | float) and not isinstance(value, bool) and value != 0 and rule_for(name):
            rule = rule_for(name)
            values[name] = vocabulary if rule == "vocabulary" else rule
        elif isinstance(value, bool | int | float | str) and name in fields:
            values[name] = value
    kinds = getattr(default, "layer_types", None) or ()
    if len(set(kinds)) > 1:  # a layer of each kind, that of full attention last
        ordered = sorted(set(kinds), key=lambda kind: ("full" in kind or "indexed" in kind, kind))
        values |= {"layer_types": ordered, "num_hidden_layers": len(ordered)}
    values |= _side(default)
    return type(default)(**{**_roped(default, values), **EXCEPTIONS.get(path, {})})


def _side(default: PreTrainedConfig) -> dict[str, Any]:
    """Four patches a side."""
    size, patch = (getattr(default, name, None) for name in ("image_size", "patch_size"))
    if isinstance(size, int) and isinstance(patch, int):
        return {"image_size": 4 * patch}
    if isinstance(size, list | tuple) and isinstance(patch, list | tuple):
        return {"image_size": [4 * one for one in patch]}
    return {}


def _roped(default: PreTrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Positions on three axes share the frequencies of a small head."""
    rope = getattr(default, "rope_parameters", None)
    source = inspect.getsource(importlib.import_module(type(default).__module__))
    if not isinstance(rope, dict) or getattr(default, "vocab_size", None) is None:
        return values
    module = importlib.import_module(type(default).__module__.replace("configuration_", "modeling_"))
    if "mrope_section" not in source + inspect.getsource(module):
        return values
    nested = all(isinstance(one, dict) for one in rope.values())
    found = {}
    for kind, one in (rope if nested else {"": rope}).items():
        partial = one.get("partial_rotary_factor", None) or getattr(default, "partial_rotary_factor", None) or 1.0
        head = values.get("head_dim") or WIDTH // HEADS
        count = int(head * partial) // 2
        first = max(1, count * 3 // 8)
        found[kind] = {**one, "mrope_section": [first, first, count - 2 * first]}
    return {**values, "rope_parameters": found if nested else found[""]}


# Of a type: settings of its image processor and processor, and what its template writes in an image's place.
SETTINGS: dict[str, dict[str, Any]] = {
    "aria": {"processor": {"size_conversion": {980: 4}}},
    "aya_vision": {"image_processor": {"max_patches": 2}, "processor": {"img_size": 56, "patch_size": 28}},
    "blip-2": {"place": "", "unnamed": True, "processor": {"num_query_tokens": 32}},
    "chameleon": {"processor": {"image_seq_length": 256}},
    "deepseek_vl_hybrid": {"image_processor": {"high_res_size": {"height": 64, "width": 64}}},
    "deepseek_ocr2": {"image_processor": {"size": {"height": 768, "width": 768}}},
    "dots3_note": {"image_processor": {"temporal_patch_size": 1}},
    "emu3": {"image_processor": {"min_pixels": 64 * 64, "max_pixels": 64 * 64}},
    "florence2": {"place": ""},
    "fuyu": {"place": ""},
    "gemma3": {"place": "<boi_token>"},
    "gemma4": {"image_processor": {"max_soft_tokens": 70}},
    "idefics": {"place": "", "unnamed": True},
    "idefics2": {"processor": {"image_seq_len": 64}},
    "kosmos-2": {"place": "<image>"},
    # The class asks for 4096 patches, whatever its image processor was saved with.
    "kosmos-2.5": {"place": "", "processor": {"num_image_tokens": 4}, "images_kwargs": {"max_patches": 64}},
    "t5gemma2": {"place": "<boi_token>"},
    "vipllava": {"processor": {"vision_feature_select_strategy": "default"}},
    "got_ocr2": {"image_processor": {"size": {"height": 1024, "width": 1024}}},
    "hunyuan_vl": {"place": "<image_start_token><image_token><image_end_token>"},
    "internvl": {"image_processor": {"max_patches": 2}},
    "pp_chart2table": {"place": "<image>" * 256, "image_processor": {"size": {"height": 1024, "width": 1024}}},
    "qianfan_ocr": {"place": "<image>", "image_processor": {"max_patches": 2}},
}
