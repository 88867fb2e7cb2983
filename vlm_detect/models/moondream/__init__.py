"""A native moondream2: `MoondreamConfig`, `MoondreamForConditionalGeneration` and `MoondreamProcessor`.

Importing registers the model with transformers' Auto classes, so that the official `config.json` needs no remote code.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlm_detect.models.moondream.checkpoint import register_layout
from vlm_detect.models.moondream.configuration import (
    MODEL_TYPE,
    RELEASES,
    MoondreamConfig,
    MoondreamTextConfig,
    MoondreamVisionConfig,
)
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor
from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration, MoondreamModel
from vlm_detect.models.moondream.processing import MoondreamProcessor

AutoConfig.register(MODEL_TYPE, MoondreamConfig, exist_ok=True)
AutoModelForImageTextToText.register(MoondreamConfig, MoondreamForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MoondreamConfig, MoondreamProcessor, exist_ok=True)
register_layout()

__all__ = [
    "MODEL_TYPE",
    "RELEASES",
    "MoondreamConfig",
    "MoondreamForConditionalGeneration",
    "MoondreamImageProcessor",
    "MoondreamModel",
    "MoondreamProcessor",
    "MoondreamTextConfig",
    "MoondreamVisionConfig",
]
