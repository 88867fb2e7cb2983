"""Configuration of moondream2, and a table of the values that each official release hard-codes.

A released `config.json` holds `"config": {}`: sizes, prompt templates, special ids, dtype and tokenizer live in the
defaults of the code of that date. `RELEASES` carries those facts, so that a checkpoint is read with the values it was
trained with. Facts: vikhyat/moondream, `moondream/torch/config.py` at the commit of each release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

MODEL_TYPE = "moondream1"  # what the official config.json says; one type reads the official and our own layout
HUB_ID = "vikhyatk/moondream2"
DEFAULT_RELEASE = "2025-06-21"

SizeBins = Literal["linear", "log2"]


@dataclass(frozen=True)
class Release:
    """Values that the code of one official release hard-codes in addition to the weights."""

    dtype: str  # of weights and pixels
    tokenizer_id: str
    bos_token_id: int
    eos_token_id: int
    image_token_id: int  # a placeholder of ours: an id that no encoded text contains
    templates: dict[str, Any]
    question_prefix: str = ""  # put in front of a question before it is encoded
    query_suffix_repeats: int = 1
    has_extras: bool = False  # reasoning, spatial references, questions without an image
    size_bins: SizeBins = "log2"  # what a bin of the size decoder stands for: its share, or a power of two


_CODEGEN_TEMPLATES = {
    "caption": {"short": [198, 198, 16438, 8305, 25], "normal": [198, 198, 24334, 1159, 25]},
    "query": {"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]},
    "detect": {"prefix": [198, 198, 47504, 25], "suffix": [628]},
    "point": {"prefix": [198, 198, 12727, 25], "suffix": [628]},
}
_CODEGEN_LONG = {
    **_CODEGEN_TEMPLATES,
    "caption": {**_CODEGEN_TEMPLATES["caption"], "long": [198, 198, 14617, 8305, 25]},
}
_STARMIE_TEMPLATES = {
    "caption": {"short": [1, 32708, 2, 12492, 3], "normal": [1, 32708, 2, 6382, 3], "long": [1, 32708, 2, 4059, 3]},
    "query": {"prefix": [1, 15381, 2], "suffix": [3]},
    "detect": {"prefix": [1, 7235, 476, 2], "suffix": [3]},
    "point": {"prefix": [1, 2581, 2], "suffix": [3]},
}


def _codegen(templates: dict[str, Any], question_prefix: str, size_bins: SizeBins = "log2") -> Release:
    return Release(
        dtype="float16",
        tokenizer_id=HUB_ID,
        bos_token_id=50256,
        eos_token_id=50256,
        image_token_id=51199,  # the codegen vocabulary ends at 50294
        templates=templates,
        question_prefix=question_prefix,
        size_bins=size_bins,
    )


RELEASES: dict[str, Release] = {
    "2025-01-09": _codegen(_CODEGEN_TEMPLATES, "", size_bins="linear"),
    "2025-03-27": _codegen(_CODEGEN_LONG, " "),
    "2025-04-14": _codegen(_CODEGEN_LONG, " "),
    "2025-06-21": Release(
        dtype="bfloat16",
        tokenizer_id="moondream/starmie-v1",  # not the tokenizer next to the weights, which is the old one
        bos_token_id=0,
        eos_token_id=0,
        image_token_id=8,  # a reserved special token: plain text never encodes to it
        templates=_STARMIE_TEMPLATES,
        # The official query() appends the suffix when it builds the prompt and once more before it decodes.
        query_suffix_repeats=2,
        has_extras=True,
    ),
}


class MoondreamVisionConfig(PreTrainedConfig):
    """The image encoder: overlapping crops, a SigLIP-like tower, and the projection to the text model."""

    model_type = "moondream1_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    patch_size: int = 14
    crop_size: int = 378
    max_crops: int = 12
    overlap_margin: int = 4  # in patches, on each side of a tile
    projection_hidden_size: int = 8192
    projection_size: int = 2048
    layer_norm_eps: float = 1e-5  # torch's default, as the official code has it; SigLIP itself uses 1e-6
    initializer_range: float = 0.02

    @property
    def grid_size(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Embeddings an image becomes, whatever its size."""
        return self.grid_size**2


class MoondreamTextConfig(PreTrainedConfig):
    """The decoder: parallel attention and MLP behind one LayerNorm, rotary on half of each head."""

    model_type = "moondream1_text"
    base_config_key = "text_config"

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: Any = None  # as many as heads where not given
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    # Those of the whole model: the Trainer looks for them here.
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Dimensions of each head that rotate."""
        return self.head_dim // 2


class MoondreamRegionConfig(PreTrainedConfig):
    """The heads that read and write places and sizes; see `region.py`."""

    model_type = "moondream1_region"
    base_config_key = "region_config"

    hidden_size: int = 2048
    intermediate_size: int = 8192
    coord_feature_size: int = 256
    coord_output_size: int = 1024
    size_feature_size: int = 512
    size_output_size: int = 2048
    size_bins: Any = None  # filled in from the release


class MoondreamConfig(PreTrainedConfig):
    """Sizes, special ids and prompt templates of a moondream2.

    `templates` holds the ids around a prompt: `query`, `detect`, `point` as {prefix, suffix}, `caption` by length.
    """

    model_type = MODEL_TYPE
    # Those with attention, for which an implementation can be chosen; the region head has none.
    sub_configs = {"text_config": MoondreamTextConfig, "vision_config": MoondreamVisionConfig}  # noqa: RUF012
    attribute_map = {"image_token_index": "image_token_id"}  # noqa: RUF012

    text_config: Any = None  # None, a dict, or the sub-configuration itself; always the latter once constructed
    vision_config: Any = None
    region_config: Any = None
    release: str = DEFAULT_RELEASE
    # What is None here is filled in from the release.
    templates: Any = None
    tokenizer_id: Any = None
    question_prefix: Any = None
    query_suffix_repeats: Any = None
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None
    image_token_id: Any = None
    answer_token_id: int = 3
    thinking_token_id: int = 4
    coord_token_id: int = 5
    size_token_id: int = 6
    start_ground_points_token_id: int = 7
    end_ground_token_id: int = 9
    pixel_dtype: Any = None  # pixels are normalised in this dtype, rounding after each step
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in (*self.sub_configs.items(), ("region_config", MoondreamRegionConfig)):
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                setattr(self, name, config_class(**(value or {})))
        if self.release not in RELEASES:
            raise ValueError(f"unknown moondream2 release {self.release!r}; known are {', '.join(RELEASES)}")
        release = RELEASES[self.release]
        for name in (
            "templates",
            "tokenizer_id",
            "question_prefix",
            "query_suffix_repeats",
            "bos_token_id",
            "eos_token_id",
            "image_token_id",
        ):
            if getattr(self, name) is None:
                setattr(self, name, getattr(release, name))
        if self.region_config.size_bins is None:
            self.region_config.size_bins = release.size_bins
        if self.pixel_dtype is None:
            self.pixel_dtype = release.dtype
        if self.pad_token_id is None:
            self.pad_token_id = self.eos_token_id
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.text_config, name, getattr(self, name))
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> MoondreamConfig:
        """As transformers', and a `revision` that is the date of a release selects that release's table."""
        revision = kwargs.get("revision")
        if revision in RELEASES:
            kwargs["release"] = revision
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> MoondreamConfig:
        if "text_config" not in config_dict:  # the official layout
            release = kwargs.pop("release", None) or config_dict.get("release") or DEFAULT_RELEASE
            config_dict = from_official(config_dict, release)
        return super().from_dict(config_dict, **kwargs)


# Official name -> ours, section by section of the official config.
_OFFICIAL_NAMES = {
    "text": {
        "dim": "hidden_size",
        "ff_dim": "intermediate_size",
        "n_layers": "num_hidden_layers",
        "vocab_size": "vocab_size",
        "max_context": "max_position_embeddings",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
    },
    "vision": {
        "enc_dim": "hidden_size",
        "enc_patch_size": "patch_size",
        "enc_n_layers": "num_hidden_layers",
        "enc_ff_dim": "intermediate_size",
        "enc_n_heads": "num_attention_heads",
        "proj_out_dim": "projection_size",
        "proj_inner_dim": "projection_hidden_size",
        "crop_size": "crop_size",
        "in_channels": "num_channels",
        "max_crops": "max_crops",
        "overlap_margin": "overlap_margin",
    },
    "region": {
        "dim": "hidden_size",
        "inner_dim": "intermediate_size",
        "coord_feat_dim": "coord_feature_size",
        "coord_out_dim": "coord_output_size",
        "size_feat_dim": "size_feature_size",
        "size_out_dim": "size_output_size",
    },
    "tokenizer": {
        "bos_id": "bos_token_id",
        "eos_id": "eos_token_id",
        "answer_id": "answer_token_id",
        "thinking_id": "thinking_token_id",
        "coord_id": "coord_token_id",
        "size_id": "size_token_id",
        "start_ground_points_id": "start_ground_points_token_id",
        "end_ground_id": "end_ground_token_id",
        "templates": "templates",
    },
}


def from_official(config_dict: dict[str, Any], release: str = DEFAULT_RELEASE) -> dict[str, Any]:
    """Translate an official `config.json` (its `config` may be empty) to the fields of `MoondreamConfig`.

    Raises ValueError for the quantised releases, whose weights are packed int4.
    """
    official = config_dict.get("config") or {}
    if any((official.get(section) or {}).get("group_size") for section in ("text", "region")):
        raise ValueError(
            "this is a quantised moondream release (packed int4 weights), which cannot be tuned or converted; "
            f"use the full-precision {HUB_ID} and quantise it with bitsandbytes"
        )
    native: dict[str, Any] = {"release": release}
    for section, names in _OFFICIAL_NAMES.items():
        values = {names[key]: value for key, value in (official.get(section) or {}).items() if key in names}
        if section == "tokenizer":
            native |= values
        else:
            native[f"{section}_config"] = values
    # The region head reads and writes the text model's hidden states.
    if "hidden_size" in native["text_config"]:
        native["region_config"].setdefault("hidden_size", native["text_config"]["hidden_size"])
        native["vision_config"].setdefault("projection_size", native["text_config"]["hidden_size"])
    if dtype := config_dict.get("torch_dtype") or config_dict.get("dtype"):
        native["dtype"] = dtype
    return native


def to_official(config: MoondreamConfig) -> dict[str, Any]:
    """The `config.json` from which the official code rebuilds this model's sizes and templates."""
    official: dict[str, Any] = {}
    for section, names in _OFFICIAL_NAMES.items():
        source = config if section == "tokenizer" else getattr(config, f"{section}_config")
        official[section] = {theirs: getattr(source, ours) for theirs, ours in names.items()}
    official["text"]["prefix_attn"] = 1 + config.vision_config.num_image_tokens
    dtype = str(config.dtype or RELEASES[config.release].dtype).removeprefix("torch.")
    return {"architectures": ["HfMoondream"], "model_type": MODEL_TYPE, "config": official, "torch_dtype": dtype}
