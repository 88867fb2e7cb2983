"""What the engine is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ask:
    """A question and the answers whose probabilities are wanted: whole ones, or (`whole=False`) ways to begin."""

    question: str
    candidates: tuple[str, ...]
    whole: bool = True


@dataclass(frozen=True)
class CandidateScore:
    """Summed log-probability of an answer's tokens, a whole one's end of text included, and how many they are."""

    logprob: float
    n_tokens: int


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) to the likeliest id of each (...)."""
    return logits.argmax(-1)
