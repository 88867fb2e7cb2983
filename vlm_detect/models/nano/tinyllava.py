"""The nano TinyLLaVA: SigLIP, an MLP and Phi on transformers' LLaVA, for images of 32 pixels.

    model, processor = build_tinyllava(NanoTinyLlava(), train_tokenizer(texts, 1300))

Its folder (`save_tinyllava`) is read by `load_tinyllava` and `load_vlm` like the real one's. Nothing is trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaProcessor, PhiConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from vlm_detect.models.tinyllava import TinyLlavaConfig, TinyLlavaForConditionalGeneration
from vlm_detect.models.tinyllava.processing import make_processor


@dataclass(frozen=True)
class NanoTinyLlava:
    """Sizes. The defaults have 2.6 million parameters and 63 image tokens: an 8 x 8 grid less its first patch."""

    image_size: int = 32
    patch_size: int = 4
    vision_width: int = 128
    vision_layers: int = 6
    """the features are those of the last but one, as in the real model"""
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 2
    max_positions: int = 512


def build_tinyllava(
    sizes: NanoTinyLlava, tokenizer: PreTrainedTokenizerFast
) -> tuple[TinyLlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained model and its processor; `tokenizer` gets a token for the image's place."""
    vision = SiglipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    text = PhiConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.max_positions,
        partial_rotary_factor=0.5,  # 32 dimensions, as phi-2 turns of its heads of 80
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = TinyLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2 - 1,
        tokenizer_model_max_length=sizes.max_positions,
    )
    processor = make_processor(config, tokenizer)
    config.image_token_index = processor.image_token_id
    return TinyLlavaForConditionalGeneration(config), processor


def save_tinyllava(model: TinyLlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the folder that `load_tinyllava` reads."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
