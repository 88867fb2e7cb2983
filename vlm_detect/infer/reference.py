"""The plain path: one forward pass for each (image, question, answer), nothing cached, nothing packed, batch one.

Slow, short and obviously right; the engine is tested against it.
"""

from __future__ import annotations

import torch
from PIL import Image

from ..models.base import VLM
from .engine import CandidateScore


@torch.inference_mode()
def score_plain(vlm: VLM, image: Image.Image, question: str, answer: str) -> CandidateScore:
    """The log-probability of `answer` to `question` about `image`."""
    answer_ids = vlm.answer_ids(answer)
    inputs = vlm.prefix_inputs(vlm.encode(vlm.prepare([image])))
    rest = torch.tensor([[*vlm.question_ids(question), *answer_ids]], device=vlm.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], rest], dim=1)
    logits = vlm.model(**inputs, use_cache=False).logits[0, -len(answer_ids) - 1 : -1].float()
    logprobs = logits.log_softmax(-1)
    total = sum(float(row[token]) for row, token in zip(logprobs, answer_ids, strict=True))
    return CandidateScore(total, len(answer_ids))


@torch.inference_mode()
def generate_plain(vlm: VLM, image: Image.Image, prompt_ids: list[int], max_new_tokens: int) -> str:
    """Greedy text behind `prompt_ids` about `image`, the image read anew."""
    inputs = vlm.prefix_inputs(vlm.encode(vlm.prepare([image])))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([prompt_ids], device=vlm.device)], dim=1)
    output = vlm.model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=vlm.eos_token_id,
        eos_token_id=vlm.eos_token_id,
    )
    return vlm.decode(output[0, inputs["input_ids"].shape[1] :].tolist()).strip()
