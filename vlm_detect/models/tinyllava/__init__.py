"""TinyLLaVA on transformers' own LLaVA: no remote code, no old versions.

    model, processor = load_tinyllava("tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B")
    model, processor = load_tinyllava("output/of/a/factory/run")

Importing registers the model with transformers' Auto classes, so that a TinyLLaVA's `config.json` needs no remote code.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, LlavaProcessor

from vlm_detect.models.tinyllava.configuration import HUB_ID, MODEL_TYPE, TinyLlavaConfig
from vlm_detect.models.tinyllava.modeling import TinyLlavaForConditionalGeneration
from vlm_detect.models.tinyllava.processing import load_processor
from vlm_detect.models.untrusted import load_untrusted

AutoConfig.register(MODEL_TYPE, TinyLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(TinyLlavaConfig, TinyLlavaForConditionalGeneration, exist_ok=True)


def load_tinyllava(
    path_or_id: str | Path, *, revision: str | None = None, **options: Any
) -> tuple[TinyLlavaForConditionalGeneration, LlavaProcessor]:
    """A TinyLLaVA and its processor, from a Hub id or folder in the released layout or our own, or from the output
    folder of a TinyLLaVA_Factory run; a LoRA there is merged.

    `options` go to `from_pretrained` (dtype, quantization_config, ...). Raises ValueError, naming the part, for towers,
    connectors and language models that transformers' LLaVA has no place for, and for damaged checkpoints.
    """
    hub_options = {"revision": revision} if revision else {}
    config = load_untrusted(TinyLlavaConfig, path_or_id, **hub_options)
    processor = load_processor(path_or_id, config, **hub_options)
    config.image_token_index = processor.image_token_id
    model = load_untrusted(TinyLlavaForConditionalGeneration, path_or_id, config=config, **hub_options, **options)
    # Answers end with the template's end of text, whatever the language model's own configuration says.
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


__all__ = ["HUB_ID", "MODEL_TYPE", "TinyLlavaConfig", "TinyLlavaForConditionalGeneration", "load_tinyllava"]
