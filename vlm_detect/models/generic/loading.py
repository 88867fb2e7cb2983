"""Loading an image-text model of transformers and its processor, image processors by their PIL class.

Where torchvision is installed, transformers takes the torchvision class, whose resize differs; here an installed
torchvision changes no pixel.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's own name of it wants torchvision
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from vlm_detect.models.generic.joined import JoinedProcessor
from vlm_detect.models.untrusted import load_untrusted

_WITHOUT_VIDEO = ("qwen2_vl", "qwen2_5_vl")


def is_supported(config: Any) -> bool:
    """Whether transformers has an image-text model of this configuration."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_generic(path_or_id: str, *, revision: str | None = None, **options: Any) -> tuple[PreTrainedModel, Any]:
    """The model and its processor; `options` go to the model's `from_pretrained`."""
    hub_options = {"revision": revision} if revision else {}
    model = load_untrusted(AutoModelForImageTextToText, path_or_id, **hub_options, **options)
    return model.eval(), load_processor(path_or_id, **hub_options)


def load_processor(path_or_id: str, **hub_options: Any) -> Any:
    """A processor whose image processor is the PIL one.

    Raises ValueError where the model has no processor class that can be built of an image processor and a tokenizer.
    """
    config = load_untrusted(AutoConfig, path_or_id, **hub_options)
    image_processor = load_untrusted(AutoImageProcessor, path_or_id, backend="pil", **hub_options)
    tokenizer = load_untrusted(AutoTokenizer, path_or_id, **hub_options)
    stored, _ = ProcessorMixin.get_processor_dict(path_or_id, **hub_options)
    template = stored.get("chat_template") or tokenizer.chat_template
    if config.model_type in _WITHOUT_VIDEO:
        return JoinedProcessor(image_processor, tokenizer, template)
    processor_class = PROCESSOR_MAPPING.get(type(config), None)
    if processor_class is None:
        raise ValueError(f"transformers has no processor for model type {config.model_type!r}")
    known = processor_class.get_attributes()
    if unknown := set(known) - {"image_processor", "tokenizer"}:
        raise ValueError(f"{processor_class.__name__} needs {', '.join(sorted(unknown))} too, which is not supported")
    dropped = {"processor_class", "auto_map", "chat_template", *known}
    settings = {name: value for name, value in stored.items() if name not in dropped}
    return processor_class(image_processor, tokenizer, chat_template=template, **settings)
