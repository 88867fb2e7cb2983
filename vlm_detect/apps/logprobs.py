"""Log-probabilities of generated tokens, as OpenAI's chat completions give them.

    "logprobs": {"content": [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}]}]}

They are the model's own, in nats, before temperature and top_p; the end of text is not among the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_detect.models.base import VLM

_LEAST = -9999.0  # the protocol's value for an impossible token, as JSON has no infinity


@dataclass(frozen=True)
class TokenLogprob:
    """A token's id, its log-probability, and the likeliest ids with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """Of `token` under `logits` (V,), with the `top` likeliest."""
    values = logits.float().log_softmax(-1)
    likeliest = values.topk(min(top, len(values)))
    ids, found = likeliest.indices.tolist(), likeliest.values.tolist()
    return TokenLogprob(token, float(values[token]), tuple(zip(ids, found, strict=True)))


def logprobs_body(vlm: VLM, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a choice."""
    content = [
        {**_one(vlm, one.token, one.logprob), "top_logprobs": [_one(vlm, *entry) for entry in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _one(vlm: VLM, token: int, logprob: float) -> dict[str, Any]:
    text = vlm.decode([token])
    return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(text.encode())}
