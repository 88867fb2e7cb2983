"""The sizes of published models, by Hub id: memory is estimated from them without any file of the model.

A config holds what differs from transformers' defaults. Sources: Qwen3-VL-2B, pytorch/torchtitan
(torchtitan/experiments/qwen3_vl); SmolVLM2-2.2B, the tower of google/siglip-so400m-patch14-384 and the decoder of
HuggingFaceTB/SmolLM2-1.7B with SmolVLM's vocabulary, and for the number of image tokens vllm-project/vllm
(test_smolvlm.py); InternVL3.5-1B, transformers' InternVLConfig and the decoder of Qwen/Qwen3-0.6B. The shapes have
exactly as many weights as the Hub counts (`n_weights`), and image processors with these settings make the stated cost
of an image (`tests/models/test_published.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from vlm_detect.models.base import ImageCost


@dataclass(frozen=True)
class Published:
    """What is known of a model; `image` is the cost of a megapixel."""

    config: Mapping[str, Any]
    image_processor: Mapping[str, Any]
    image: ImageCost
    dtype: str  # of the published weights
    n_weights: int

    def make_config(self, **decoder: Any) -> PreTrainedConfig:
        """The configuration, with these settings of the decoder in place of the published ones."""
        settings = {**self.config, "text_config": {**self.config["text_config"], **decoder}}
        return CONFIG_MAPPING[settings.pop("model_type")](**settings)


_QWEN3_VL_2B = Published(
    {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "patch_size": 16,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    {"patch_size": 16, "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}},
    ImageCost(1030, 6_291_456),
    "bfloat16",
    2_127_532_032,
)
_SMOLVLM2_2B = Published(
    {
        "model_type": "smolvlm",
        "scale_factor": 3,
        "image_token_id": 49190,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 8192,
            "pad_token_id": 2,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
    },
    {"size": {"longest_edge": 4 * 384}, "max_image_size": {"longest_edge": 384}},
    ImageCost(1422, 7_520_256),
    "float32",
    2_246_784_880,
)
_INTERNVL3_5_1B = Published(
    {
        "model_type": "internvl",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
        "vision_config": {"attention_bias": True},
    },
    {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12},
    ImageCost(3336, 7_827_456),
    "bfloat16",
    1_060_897_792,
)
PUBLISHED = {
    "Qwen/Qwen3-VL-2B-Instruct": _QWEN3_VL_2B,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _SMOLVLM2_2B,
    "OpenGVLab/InternVL3_5-1B-HF": _INTERNVL3_5_1B,
}
