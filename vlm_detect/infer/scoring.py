"""Log-probabilities of answers after image prefixes: all questions and candidates of an image in one packed row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_detect.infer.asks import Ask, CandidateScore
from vlm_detect.infer.packing import Packed, pad_packed
from vlm_detect.infer.prefixes import Prefix, check_length, stack_prefixes
from vlm_detect.machine import on_device, row_multiple
from vlm_detect.models.base import VLM
from vlm_detect.models.continuation import forward


@torch.inference_mode()
def score_packed(
    vlm: VLM, prefixes: Sequence[Prefix], asks: Sequence[Sequence[Ask]]
) -> list[list[list[CandidateScore]]]:
    """Per image, per ask, one score per candidate; prefixes have equal length and form one batch."""
    rows, spans = zip(*(_pack(vlm, image_asks) for image_asks in asks), strict=True)
    prefix_length = len(prefixes[0])
    check_length(vlm, prefix_length + max(end for row in rows for end in row.ends))
    ids, positions, mask = pad_packed(rows, prefix_length, vlm.eos_token_id, row_multiple(vlm.device))
    # Logits are computed only where an answer's token is predicted: at a few positions, not at all.
    needed = sorted({source for row in spans for ask in row for answer in ask for source, _ in answer})
    place = {position: i for i, position in enumerate(needed)}
    positions += torch.tensor([[prefix.shift] for prefix in prefixes])
    logits_at = torch.tensor(needed)
    ids, positions, mask, logits_at = (on_device(part, vlm.device) for part in (ids, positions, mask, logits_at))
    outputs = forward(vlm, ids, positions, mask, stack_prefixes(prefixes), logits_at)
    logprobs = outputs.logits.float().log_softmax(-1)  # (B, needed, V)
    # Gathered in one call: on a GPU every single fetch synchronizes.
    chosen = [
        (i, place[source], token)
        for i, row in enumerate(spans)
        for ask in row
        for answer in ask
        for source, token in answer
    ]
    picked = iter(logprobs[tuple(on_device(torch.tensor(chosen), vlm.device).T)].tolist())
    return [
        [[CandidateScore(sum(next(picked) for _ in answer), len(answer)) for answer in ask] for ask in row]
        for row in spans
    ]


def _pack(vlm: VLM, asks: Sequence[Ask]) -> tuple[Packed, list[list[list[tuple[int, int]]]]]:
    """One image's row, and for each ask and candidate its (predicting index, predicted token) pairs."""
    packed = Packed()
    spans = []
    for ask in asks:
        question = packed.add(vlm.question_ids(ask.question))
        answers = []
        for candidate in ask.candidates:
            ids = vlm.answer_ids(candidate)
            ids = ids if ask.whole else ids[:-1]
            first = len(packed.ids)
            packed.add(ids[:-1], parent=question)  # the last is predicted, never read
            sources = [packed.last_index[question], *range(first, first + len(ids) - 1)]
            answers.append(list(zip(sources, ids, strict=True)))
        spans.append(answers)
    return packed, spans
