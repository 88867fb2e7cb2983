"""Tiny image-text models of transformers' own classes with random weights, saved as the Hub's repositories are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from vlm_detect.models.generic.processors import absent_parts, image_only

STD = 0.2  # of the random weights: large enough that every input tells in the logits
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": STD,
}
SIGLIP: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": STD,
}

_LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ p['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}"
    "{% endfor %}{% endfor %}"
)
_TURNS_TEMPLATE = (
    "{% for m in messages %}{{ '@START@' + m['role'] + '\n' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '@IMAGE@' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}{{ '@END@\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '@START@assistant\n' }}{% endif %}"
)


def turns(start: str, image: str, end: str) -> str:
    return _TURNS_TEMPLATE.replace("@START@", start).replace("@IMAGE@", image).replace("@END@", end)


def byte_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """One token a byte, behind the special tokens."""
    names = ["<pad>", "<s>", "</s>", *special]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*names, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={**named, **{f"special_{i}": token for i, token in enumerate(special)}},
    )


def llava() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=_LLAVA_TEMPLATE,
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIGLIP),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_index=processor.image_token_id,
        image_seq_length=16,
    )
    return LlavaForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("<image>")
    image_processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor, tokenizer, chat_template=_PALIGEMMA_TEMPLATE)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config=GemmaConfig(vocab_size=len(tokenizer), **TEXT),
        image_token_index=processor.image_token_id,
        projection_dim=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = byte_tokenizer(*named.values(), "<start_of_turn>", "<end_of_turn>", **named)
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer,
        chat_template=turns("<start_of_turn>", "<start_of_image>", "<end_of_turn>"),
        image_seq_length=4,
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config={
            "vocab_size": len(tokenizer),
            **TEXT,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 512,
            "query_pre_attn_scalar": 16,
        },
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=STD)  # zeros by default
    return model, processor


def idefics3() -> tuple[Any, Any]:
    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows]
    tokenizer = byte_tokenizer(*special)
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer,
        image_seq_len=4,
        chat_template=turns("", "<image>", "<end_of_utterance>"),
    )
    config = Idefics3Config(
        vision_config=SIGLIP,
        text_config=LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **TEXT),
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1]}
    return _qwen(Qwen2_5_VLForConditionalGeneration, {**vision, "out_hidden_size": 32})


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen(Qwen2VLForConditionalGeneration, {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 32})


def _qwen(architecture: type[PreTrainedModel], vision: dict[str, Any]) -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(*special)
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=24 * 24)
    cls = Qwen2VLProcessor if architecture is Qwen2VLForConditionalGeneration else Qwen2_5_VLProcessor
    processor = image_only(cls)(image_processor, tokenizer, **absent_parts(cls))
    processor.chat_template = turns("<|im_start|>", place, "<|im_end|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "initializer_range": STD, **vision}
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = architecture.config_class(
        vision_config=tower,
        text_config={"vocab_size": len(tokenizer), **text, "rope_parameters": rope},
        image_token_id=processor.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        **ids,
    )
    return architecture(config), processor


ARCHITECTURES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
}


def save_tiny(architecture: str, folder: Path) -> Path:
    """A folder from which the model and its processor load."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = ARCHITECTURES[architecture]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
