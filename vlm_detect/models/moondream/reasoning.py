"""query(reasoning=True) of the release of 2025-06-21: the model thinks aloud, may point at places, then answers.

    inputs = processor(images=[photo], prompt_ids=[processor.reasoning_ids("How many ships are there?")])
    thoughts = reason(model, inputs)
    thoughts.text_ids, thoughts.points, thoughts.answer_ids

Thinking ends at the answer marker, or after `max_new_tokens`; the marker is then read and the answer decoded. A
coordinate token is followed by the embedding of the place that the region head decodes from it, instead of its own,
which is why `generate` alone cannot do this. Source: vikhyat/moondream `moondream.py` (`_generate_reasoning`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from vlm_detect.models.moondream.modeling import MoondreamForConditionalGeneration


class Thoughts(NamedTuple):
    """Ids of the thoughts and of the answer, and the coordinates in [0, 1] that were pointed at, in order."""

    text_ids: list[int]
    points: list[float]
    answer_ids: list[int]


@torch.inference_mode()
def reason(model: MoondreamForConditionalGeneration, inputs: Any, max_new_tokens: int = 768) -> Thoughts:
    """Think and answer greedily about one image (batch of one)."""
    config, region = model.config, model.model.region
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError(f"reasoning takes one prompt at a time, not {inputs['input_ids'].shape[0]}")
    cache = DynamicCache(config=config.text_config)

    def read(**inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (vocabulary,) and the region head's hidden state (1, 1, D) behind what is read."""
        out = model.model(**inputs, past_key_values=cache, use_cache=True)
        return model.model.text.lm_head(out.last_hidden_state[0, -1]), out.region_hidden_state[:, -1:]

    def token(token_id: int) -> torch.Tensor:
        return model.model.text.wte(torch.tensor([[token_id]], device=model.device))

    text_ids: list[int] = []
    points: list[float] = []
    logits, hidden = read(**inputs)
    while len(text_ids) < max_new_tokens:
        next_id = choose(logits, (config.eos_token_id, config.size_token_id) if text_ids else ())
        if next_id == config.answer_token_id:
            break
        text_ids.append(next_id)
        embedding = token(next_id)
        if next_id == config.coord_token_id:
            place = region.decode_coordinate(hidden)[0, 0]
            points.append(float(place.argmax() / place.shape[-1]))
            embedding = region.encode_coordinate(torch.tensor([[[points[-1]]]], dtype=model.dtype, device=model.device))
        logits, hidden = read(inputs_embeds=embedding)

    answer_ids: list[int] = []
    logits, _ = read(inputs_embeds=token(config.answer_token_id))
    while len(answer_ids) < max_new_tokens:
        next_id = choose(logits, (config.answer_token_id,) if answer_ids else ())
        if next_id == config.eos_token_id:
            break
        answer_ids.append(next_id)
        logits, _ = read(inputs_embeds=token(next_id))
    return Thoughts(text_ids, points, answer_ids)


def choose(logits: torch.Tensor, forbidden: Iterable[int]) -> int:
    """The likeliest id that is not forbidden."""
    logits = logits.clone()
    logits[list(forbidden)] = -torch.inf
    return int(logits.argmax())
