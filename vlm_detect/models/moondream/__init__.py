"""A native moondream2: `MoondreamConfig`, `MoondreamForConditionalGeneration` and `MoondreamProcessor`.

Importing registers the model with transformers' Auto classes, so that the official `config.json` needs no remote code.
"""

from transformers import AutoConfig, AutoModelForImageTextToText

from .checkpoint import register_layout
from .configuration import MODEL_TYPE, RELEASES, MoondreamConfig, MoondreamTextConfig, MoondreamVisionConfig
from .image_processing import MoondreamImageProcessor
from .modeling import MoondreamForConditionalGeneration, MoondreamModel
from .processing import MoondreamProcessor

AutoConfig.register(MODEL_TYPE, MoondreamConfig, exist_ok=True)
AutoModelForImageTextToText.register(MoondreamConfig, MoondreamForConditionalGeneration, exist_ok=True)
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
