"""Generate text with transformers' generate after prefixes, one row per prompt: for sampling, streamers and other
options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from vlm_detect.infer.prefixes import Prefix, check_length, stacked
from vlm_detect.models.base import VLM
from vlm_detect.models.prompt import numbers_of, stack_numbers


@torch.inference_mode()
def generate_rows(
    vlm: VLM,
    prefixes: Sequence[Prefix],
    prefix_ids: Sequence[int],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    options: dict[str, Any],
) -> list[str]:
    """Text after prompts whose prefixes all have the ids `prefix_ids`; `options` are those of `generate`."""
    longest = max(map(len, prompts))
    check_length(vlm, len(prefix_ids) + longest + max_new_tokens)
    pad_id = vlm.eos_token_id
    pads = [longest - len(prompt) for prompt in prompts]
    # Shorter prompts are padded between prefix and prompt; the mask hides the padding and the positions skip it.
    input_ids = torch.tensor(
        [[*prefix_ids, *[pad_id] * pad, *prompt] for pad, prompt in zip(pads, prompts, strict=True)]
    )
    attention_mask = torch.ones_like(input_ids)
    for row, pad in zip(attention_mask, pads, strict=True):
        row[len(prefix_ids) : len(prefix_ids) + pad] = 0
    # The model reads only what follows the prefix, and positions start there.
    numbers = [
        {pad + index: value for index, value in numbers_of(prompt).items()}
        for pad, prompt in zip(pads, prompts, strict=True)
    ]
    placed = {name: part.to(vlm.device) for name, part in stack_numbers(numbers, longest).items()}
    output = vlm.model.generate(
        input_ids=input_ids.to(vlm.device),
        attention_mask=attention_mask.to(vlm.device),
        past_key_values=DynamicCache(stacked(prefixes)),  # generate may reorder its rows
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id,
        eos_token_id=vlm.eos_token_id,
        **placed,
        **{"do_sample": False, **options},
    )
    return [vlm.decode(row[input_ids.shape[1] :].tolist()).strip() for row in output]
