"""Requests to the engine, and its results."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ask:
    """A question and its candidate answers: complete answers, or (`whole=False`) beginnings of answers."""

    question: str
    candidates: tuple[str, ...]
    whole: bool = True


@dataclass(frozen=True)
class CandidateScore:
    """Summed log-probability of an answer's tokens (with the end of text for a complete answer), and their number."""

    logprob: float
    n_tokens: int


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) to the ids with the highest logit (...)."""
    return logits.argmax(-1)
