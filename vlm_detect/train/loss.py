"""The loss: cross entropy of the answers' tokens, and of nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm_detect.models.base import VLM
from vlm_detect.train.collate import IGNORE
from vlm_detect.train.packing import packed_mask, packed_positions


def answer_loss(
    vlm: VLM, model: nn.Module, batch: dict[str, Any], n_answer_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Summed cross entropy of the labelled positions, divided by `n_answer_tokens` (default: those of this batch).

    Only positions that predict a label reach the vocabulary: with 51,200 words and about 780 positions a row, logits
    of all of them would be the largest tensor of the step.

    Args:
        vlm: knows how an image becomes a prefix.
        model: what is called: `vlm.model` or its distributed wrapper.
        batch: as `Collator` gives it; a label at position t is predicted from position t - 1.
    """
    image_embeds = batch["embeds"] if "embeds" in batch else vlm.encode(batch["prepared"])
    inputs = sequence_inputs(vlm, image_embeds[batch["row_image"]], batch["ids"], batch["branch"])
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)  # (K,): where some row predicts a label
    prefix_length = inputs["position_ids"].shape[1] - batch["ids"].shape[1]
    logits = model(**inputs, logits_to_keep=prefix_length + positions, use_cache=False).logits  # (B, K, V)
    total = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets[:, positions].flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / ((targets != IGNORE).sum() if n_answer_tokens is None else n_answer_tokens)


def sequence_inputs(
    vlm: VLM, image_embeds: torch.Tensor, ids: torch.Tensor, branch: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Arguments of the model's forward for image embeddings (B, N, D), each followed by its row of `ids` (B, L)."""
    inputs = vlm.prefix_inputs(image_embeds)
    if "inputs_embeds" in inputs:
        embeds = vlm.model.get_input_embeddings()(ids)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], embeds], dim=1)
        prefix_length = inputs["inputs_embeds"].shape[1] - ids.shape[1]
    else:
        prefix_length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["position_ids"] = packed_positions(branch, prefix_length)
    if int(branch.max()) > 0:
        inputs["attention_mask"] = packed_mask(branch, prefix_length, vlm.two_way_prefix, image_embeds.dtype)
    else:  # one question a row: the model's own mask, which fused kernels may know how to skip
        inputs["attention_mask"] = nn.functional.pad((branch >= 0).long(), (prefix_length, 0), value=1)
    return inputs
