"""Loading an image-text model of transformers and its processor, image processors by their PIL class.

Where torchvision is installed, transformers takes the torchvision class, whose resize differs; here an installed
torchvision changes no pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from vlm_detect.models.untrusted import load_untrusted

# Of a configuration, an image processor, a tokenizer and the processor's stored settings.
MakeProcessor = Callable[[Any, Any, Any, dict[str, Any]], Any]


def is_supported(config: Any) -> bool:
    """Whether transformers has an image-text model of this configuration."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def make_processor(config: Any, image_processor: Any, tokenizer: Any, stored: dict[str, Any]) -> Any:
    """transformers' own processor of this model.

    Raises ValueError where it has none that can be built of an image processor and a tokenizer.
    """
    processor_class = PROCESSOR_MAPPING.get(type(config), None)
    if processor_class is None:
        raise ValueError(f"transformers has no processor for model type {config.model_type!r}")
    known = processor_class.get_attributes()
    if unknown := set(known) - {"image_processor", "tokenizer"}:
        raise ValueError(f"{processor_class.__name__} needs {', '.join(sorted(unknown))} too, which is not supported")
    dropped = {"processor_class", "auto_map", "chat_template", *known}
    settings = {name: value for name, value in stored.items() if name not in dropped}
    template = stored.get("chat_template") or tokenizer.chat_template
    return processor_class(image_processor, tokenizer, chat_template=template, **settings)


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
    model = load_untrusted(AutoModelForImageTextToText, path_or_id, config=config, **hub_options, **options)
    image_processor = load_untrusted(AutoImageProcessor, path_or_id, backend="pil", **hub_options)
    tokenizer = load_untrusted(AutoTokenizer, path_or_id, config=config, **hub_options)
    stored, _ = ProcessorMixin.get_processor_dict(path_or_id, **hub_options)
    return model.eval(), make_processor(config, image_processor, tokenizer, stored)
