"""The configuration of a TinyLLaVA: transformers' `LlavaConfig` and what TinyLLaVA_Factory's own says next to it.

Source: TinyLLaVA_Factory `configuration_tinyllava.py`. In its `config.json` the language model's and the tower's sizes
are those that differ from their classes' defaults, so that `text_config` and `vision_config` can be read as they are.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, LlavaConfig

MODEL_TYPE = "tinyllava"
HUB_ID = "tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B"

# What the mapping onto transformers' LLaVA covers. The towers: how many tokens come before their patches.
LANGUAGE_MODELS = ("phi", "qwen2", "llama", "stablelm", "gemma")
TOWERS = {"siglip_vision_model": 0, "clip_vision_model": 1}
_BIASED_HEADS = ("phi",)
_SELECTIONS = {"patch": "default", "cls_patch": "full"}  # Factory's words and transformers'
_CONNECTOR = "mlp2x_gelu"

# The release's own `config.json`, as far as it differs from its classes' defaults.
RELEASE = {
    "model_type": MODEL_TYPE,
    "llm_model_name_or_path": "microsoft/phi-2",
    "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
    "connector_type": _CONNECTOR,
    "text_config": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "partial_rotary_factor": 0.4,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}


class TinyLlavaConfig(LlavaConfig):
    """Sizes, the place of the image and the names of the parts of a TinyLLaVA.

    The `*_id` fields name what the checkpoint was made from; they are written back by an export and never loaded.
    """

    model_type = MODEL_TYPE

    vision_feature_select_strategy: str = "default"
    image_aspect_ratio: str = "square"  # or pad: onto a grey square first
    tokenizer_model_max_length: int = 3072
    tie_word_embeddings: bool = False
    language_model_id: str = ""
    vision_model_id: str = ""
    tokenizer_id: str = ""

    @property
    def head_has_bias(self) -> bool:
        """Whether the vocabulary head has a bias, as phi-2's has. transformers' own LLaVA class drops it."""
        return self.text_config.model_type in _BIASED_HEADS

    @property
    def tokens_before_patches(self) -> int:
        """1 for a tower with a class token, else 0; ValueError for a tower of another kind."""
        _check("vision tower", self.vision_config.model_type, tuple(TOWERS))
        return TOWERS[self.vision_config.model_type]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> TinyLlavaConfig:
        if is_official(config_dict):
            config_dict = from_official(config_dict)
        return super().from_dict(config_dict, **kwargs)


def is_official(config_dict: dict[str, Any]) -> bool:
    """Whether a `config.json` is one of TinyLLaVA_Factory."""
    return config_dict.get("model_type") == MODEL_TYPE and "llm_model_name_or_path" in config_dict


def from_official(official: dict[str, Any]) -> dict[str, Any]:
    """Translate a Factory `config.json` to the fields of `TinyLlavaConfig`.

    `image_token_index` (-200 there, no token at all) is left for the tokenizer to decide.
    Raises ValueError, naming the part, for what transformers' LLaVA has no place for.
    """
    text, vision = official.get("text_config") or {}, official.get("vision_config") or {}
    _check("language model", text.get("model_type") or official["llm_model_name_or_path"], LANGUAGE_MODELS)
    tower = vision.get("model_type") or official.get("vision_model_name_or_path")
    _check("vision tower", "two towers" if official.get("vision_model_name_or_path2") else tower, tuple(TOWERS))
    _check("connector", official.get("connector_type"), (_CONNECTOR,))
    selection = official.get("vision_feature_select_strategy", "patch")
    _check("feature selection", selection, tuple(_SELECTIONS))
    _check("image_aspect_ratio", ratio := official.get("image_aspect_ratio", "square"), ("square", "pad"))
    vision_config = CONFIG_MAPPING[vision["model_type"]].from_dict(vision)
    patches = (vision_config.image_size // vision_config.patch_size) ** 2 + TOWERS[vision["model_type"]]
    native = {
        "model_type": MODEL_TYPE,
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": official.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": _SELECTIONS[selection],
        "image_seq_length": patches - (selection == "patch"),
        "projector_hidden_act": "gelu",
        "image_aspect_ratio": ratio,
        "tokenizer_model_max_length": official.get("tokenizer_model_max_length", 2048),
        "tie_word_embeddings": CONFIG_MAPPING[text["model_type"]].from_dict(text).tie_word_embeddings,
        "language_model_id": official["llm_model_name_or_path"],
        "vision_model_id": official.get("vision_model_name_or_path", ""),
        "tokenizer_id": official.get("tokenizer_name_or_path") or official["llm_model_name_or_path"],
    }
    if dtype := official.get("dtype") or official.get("torch_dtype"):
        native["dtype"] = dtype
    return native


def to_official(config: TinyLlavaConfig, pad_token: str, pad_token_id: int) -> dict[str, Any]:
    """The `config.json` from which TinyLLaVA_Factory rebuilds this model."""
    selections = {ours: theirs for theirs, ours in _SELECTIONS.items()}
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    rope = text.pop("rope_parameters", None) or {}  # transformers 4, which the Factory runs on, has it flat
    text |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "llm_model_name_or_path": config.language_model_id,
        "vision_model_name_or_path": config.vision_model_id,
        "vision_model_name_or_path2": "",
        "tokenizer_name_or_path": config.tokenizer_id,
        "connector_type": _CONNECTOR,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": selections[config.vision_feature_select_strategy],
        "image_aspect_ratio": config.image_aspect_ratio,
        "image_token_index": -200,
        "ignore_index": -100,
        "tokenizer_model_max_length": config.tokenizer_model_max_length,
        "tokenizer_padding_side": "right",
        "tokenizer_use_fast": False,
        "pad_token": pad_token,
        "pad_token_id": pad_token_id,
        "hidden_size": config.text_config.hidden_size,
        "vision_hidden_size": config.vision_config.hidden_size,
        "vocab_size": config.text_config.vocab_size,
        "text_config": text,
        "vision_config": vision,
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
    }


def _check(part: str, found: Any, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(f"{part} {found!r} has no place in transformers' LLaVA; supported are {', '.join(known)}")
