"""Loading an image-text model of transformers and its processor, image processors by their PIL class.

Where torchvision is installed, transformers takes the torchvision class, whose resize differs; here an installed
torchvision changes no pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's own name of it wants torchvision
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from vlm_detect.models.generic.processors import make_processor
from vlm_detect.models.untrusted import build_untrusted, load_untrusted

# Of a configuration, an image processor, a tokenizer and the processor's stored settings.
MakeProcessor = Callable[[Any, Any, Any, dict[str, Any]], Any]


def is_supported(config: Any) -> bool:
    """Whether transformers has an image-text model of this configuration."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_generic(
    path_or_id: str,
    *,
    revision: str | None = None,
    config: PreTrainedConfig | None = None,
    make_processor: MakeProcessor = make_processor,
    **options: Any,
) -> tuple[PreTrainedModel, Any]:
    """The model and its processor, which has the PIL image processor; `options` go to the model's `from_pretrained`.

    `config`: of a model whose config.json transformers does not know.
    """
    hub_options = {"revision": revision} if revision else {}
    config = config or load_untrusted(AutoConfig, path_or_id, **hub_options)
    if not Path(path_or_id).is_dir():
        with torch.device("meta"):  # a model that lacks a package fails here, and not after a download of its weights
            build_untrusted(AutoModelForImageTextToText, config)
    model = load_untrusted(AutoModelForImageTextToText, path_or_id, config=config, **hub_options, **options)
    return model.eval(), load_processor(path_or_id, config, make_processor, **hub_options)


def load_processor(path_or_id: str, config: PreTrainedConfig, make_processor: MakeProcessor, **hub_options: str) -> Any:
    """The processor of a model with this configuration, by its files."""
    image_processor = load_untrusted(AutoImageProcessor, path_or_id, backend="pil", **hub_options)
    tokenizer = load_untrusted(AutoTokenizer, path_or_id, config=config, **hub_options)
    stored, _ = ProcessorMixin.get_processor_dict(path_or_id, **hub_options)
    return make_processor(config, image_processor, tokenizer, stored)
