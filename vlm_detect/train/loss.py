"""The loss: cross entropy of the answers' tokens only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_detect.models.attention import attention_of
from vlm_detect.models.base import VLM
from vlm_detect.models.rows import PADDING, PREFIX, attention_mask

CHUNK = 256  # positions whose logits exist at the same time


def answer_loss(
    vlm: VLM,
    model: Callable[..., Any],
    batch: dict[str, Any],
    n_answer_tokens: torch.Tensor | int | None = None,
    chunk: int = CHUNK,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Summed cross entropy of the labelled positions, divided by `n_answer_tokens` (default: those of this batch).

    Where the batch has `weights`, each label's cross entropy is multiplied by its weight.

    Logits are computed only at positions that predict a label, `chunk` of them at a time: with 51,200 tokens in the
    vocabulary and about 780 positions per row, logits at all positions would be the largest tensor of the step.

    Args:
        vlm: makes prefixes from images.
        model: the callable: `vlm.model`, its distributed wrapper, or its forward.
        batch: from `Collator`; a label at position t is predicted from position t - 1.
        smoothing: the part of a target that is spread over the vocabulary.
    """
    image_embeds = vlm.join(batch["read"]) if "read" in batch else vlm.encode(batch["prepared"])
    head, hidden_bsd = vlm.head_and_inputs(model, row_inputs(vlm, image_embeds, batch))
    places_n = batch["predicting"]  # by index: how many a mask selects, a GPU would have to be asked
    hidden_nd = hidden_bsd.flatten(0, 1).index_select(0, places_n)
    targets_n = batch["labels"].flatten().index_select(0, places_n + 1)
    weights_n = batch["weights"].flatten().index_select(0, places_n + 1) if "weights" in batch else None
    total = hidden_nd.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets_n), chunk):
        hidden, target = hidden_nd[start : start + chunk], targets_n[start : start + chunk]
        weight = None if weights_n is None else weights_n[start : start + chunk]
        # The backward pass recomputes a chunk's logits instead of storing those of all chunks.
        total = total + checkpoint(cross_entropy, head, hidden, target, smoothing, weight, use_reentrant=False)
    return total / (len(targets_n) if n_answer_tokens is None else n_answer_tokens)


def cross_entropy(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_nd: torch.Tensor,
    targets_n: torch.Tensor,
    smoothing: float = 0.0,
    weights_n: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum over positions, each multiplied by its weight if there are `weights_n`."""
    logits = head(hidden_nd).float()
    if weights_n is None:
        return nn.functional.cross_entropy(logits, targets_n, reduction="sum", label_smoothing=smoothing)
    each = nn.functional.cross_entropy(logits, targets_n, reduction="none", label_smoothing=smoothing)
    return each @ weights_n


def row_inputs(vlm: VLM, image_embeds: torch.Tensor, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the model's forward for a batch whose images have the embeddings (N, T, D)."""
    if not vlm.has_fixed_prefix:
        return vlm.row_inputs(image_embeds, batch)
    branch = batch["branch"]
    inputs: dict[str, Any] = vlm.prefix_inputs(image_embeds[batch["row_images"]])
    if "inputs_embeds" in inputs:
        embeds = vlm.model.get_input_embeddings()(batch["ids"].masked_fill(branch == PREFIX, vlm.eos_token_id))
        prefixes = inputs["inputs_embeds"].to(embeds.dtype)
        inputs["inputs_embeds"] = embeds.masked_scatter((branch == PREFIX)[..., None], prefixes)
    else:
        inputs["input_ids"] = batch["ids"]
    inputs["position_ids"] = batch["position_ids"]
    if batch["packed"]:
        flex = attention_of(vlm.model.config.get_text_config()) == "flex_attention"
        # CUDA kernels need the decoder's dtype; a connector trained in float32 returns float32.
        decoder_dtype = inputs.get("inputs_embeds", image_embeds).dtype
        inputs["attention_mask"] = attention_mask(batch, decoder_dtype, flex=flex)
    else:  # one question per row: the model's own mask, which fused kernels may skip
        inputs["attention_mask"] = (branch != PADDING).long()
    return inputs
