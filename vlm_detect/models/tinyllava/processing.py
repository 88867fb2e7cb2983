"""The processor of a TinyLLaVA: transformers' `LlavaProcessor` with TinyLLaVA's preprocessing and conversation.

    inputs = processor(images=[photo], text=processor.apply_chat_template(messages, add_generation_prompt=True))

The image comes first in its turn, wherever it stands in the message, and "<image>" written out in a text is dropped, as
in the official templates (TinyLLaVA_Factory `data/template/`). They differ in the end of an answer alone, which is the
tokenizer's end of text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerBase
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from vlm_detect.models.tinyllava.configuration import TinyLlavaConfig
from vlm_detect.models.untrusted import load_untrusted

IMAGE_TOKEN = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
_TEMPLATE = """\
{{- @SYSTEM@ + ' ' -}}
{%- for message in messages -%}
  {%- set turn = namespace(image=false, text='') -%}
  {%- if message['content'] is string -%}
    {%- set turn.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}{%- set turn.image = true -%}{%- endif -%}
      {%- if part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- 'ASSISTANT: ' + turn.text + @END@ -}}
  {%- elif turn.image -%}
    {{- 'USER: ' + (@IMAGE@ + '\\n' + turn.text | replace('<image>', '') | trim) | trim + ' ' -}}
  {%- else -%}
    {{- 'USER: ' + turn.text + ' ' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def load_processor(path_or_id: str | Path, config: TinyLlavaConfig, **hub_options: Any) -> LlavaProcessor:
    """The processor of a checkpoint, whose tokenizer lies next to its weights in every layout."""
    tokenizer = load_untrusted(AutoTokenizer, path_or_id, **hub_options)
    return make_processor(config, tokenizer)


def make_processor(config: TinyLlavaConfig, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """A processor for `config`; `tokenizer` gets a token that holds the image's place."""
    image_token = place_of_image(tokenizer, config.text_config.vocab_size)
    if tokenizer.pad_token is None or tokenizer.pad_token == image_token:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # as generation needs it
    tokenizer.model_max_length = config.tokenizer_model_max_length
    return LlavaProcessor(
        make_image_processor(config),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=chat_template(image_token, str(tokenizer.eos_token)),
        image_token=image_token,
        num_additional_image_tokens=config.tokens_before_patches,
    )


def make_image_processor(config: TinyLlavaConfig) -> LlavaImageProcessorPil:
    """Bicubic to the tower's size: stretched for SigLIP, cropped for CLIP, padded to a square first for `pad`."""
    side = config.vision_config.image_size
    pad = config.image_aspect_ratio == "pad"
    if config.vision_config.model_type == "clip_vision_model":
        return LlavaImageProcessorPil(
            do_pad=pad, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    return LlavaImageProcessorPil(
        do_pad=pad,
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=list(IMAGENET_STANDARD_MEAN),
        image_std=list(IMAGENET_STANDARD_STD),
    )


def place_of_image(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> str:
    """The token that stands for an image: a new one where the model's vocabulary has room behind the tokenizer's, which
    leaves the embeddings as they are; else one that no text encodes to."""
    known = tokenizer.get_vocab()
    if IMAGE_TOKEN in known:
        return IMAGE_TOKEN
    if len(tokenizer) < vocabulary:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
        return IMAGE_TOKEN
    for unused in ("<unused0>", tokenizer.unk_token):  # Gemma's; Llama's, whose bytes encode everything
        if unused in known:
            return unused
    raise ValueError(f"the tokenizer fills all {vocabulary} ids of the vocabulary: none is left for the image")


def chat_template(image_token: str, end: str) -> str:
    """The conversation as a Jinja template: system text, "USER: ... ASSISTANT: ...", `end` behind every answer."""
    words = {"@SYSTEM@": SYSTEM, "@END@": end, "@IMAGE@": image_token}
    template = _TEMPLATE
    for word, text in words.items():
        template = template.replace(word, json.dumps(text))
    return template
