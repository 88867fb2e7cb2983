"""Published image-text models at full size, with a processor of their image settings and a tokenizer of a few words.

vlm = full_size("Qwen/Qwen3-VL-2B-Instruct")     # weights have shapes alone, or are of whatever mode is active
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from tests.models.tiny_types import image_processor_class, make_processor, set_ids
from vlm_detect.models.generic import ChatVLM
from vlm_detect.models.generic.published import PUBLISHED
from vlm_detect.train.memory import family_of

_MOST_CROPS = 10  # of SmolVLM, along each side: its tokenizer has a token for the place of each


def full_size(name: str, *, layers: int | None = None, device: str = "meta", **options: Any) -> ChatVLM:
    """A decoder of so many `layers`; `options` go to the model's `from_config`."""
    found = PUBLISHED[name]
    config = found.make_config(**({} if layers is None else {"num_hidden_layers": layers}))
    with _disable_current_modes():
        processor = processor_of(config, found.image_processor)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, **options)
    model.tie_weights()  # which follows the initialisation, where that is left out
    vlm = family_of(config)(model.eval(), processor, name)
    assert isinstance(vlm, ChatVLM)
    with _disable_current_modes():
        _ = vlm.levels, vlm.joined_along  # found once, on images: fake tensors have no pixels to try
    return vlm


def processor_of(config: PreTrainedConfig, settings: Any) -> Any:
    made = image_processor_class(config.model_type)(**settings)
    places = [f"<row_{row + 1}_col_{column + 1}>" for row in range(_MOST_CROPS) for column in range(_MOST_CROPS)]
    processor = make_processor(config.model_type, config, made, [*places, "<global-img>"])
    set_ids(config, processor)
    return processor
