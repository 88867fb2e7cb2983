"""Decode many prompts after image prefixes in parallel: one forward pass per step for all prompts of all images.

    branches = Branches(vlm, prefixes, prompts)      # prompts[i]: the prompts of image i, which do not see each other
    branches.logits                                  # (images, most prompts of an image, vocabulary)
    branches.read(chosen)                            # append one token to each; updates the logits

Text, boxes and grounded reasoning are all decoded by such steps; they differ in the next input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_detect.infer.packing import Packed, pad_packed
from vlm_detect.infer.prefixes import Prefix, decoding_cache
from vlm_detect.machine import on_device
from vlm_detect.models.base import VLM
from vlm_detect.models.continuation import forward
from vlm_detect.models.prompt import numbers_of, stack_numbers

_STEPS = 64
_MOST_STEPS = 256  # for which room is left from the start: few answers are longer


def room_for(prompts: Sequence[Sequence[Sequence[int]]], steps: int) -> int:
    """How many tokens the longest row of prompts takes in the KV cache, with `steps` more for each of its slots."""
    return max(sum(map(len, row)) for row in prompts) + min(steps, _MOST_STEPS) * max(map(len, prompts))


class Branches:
    """Reads the prompts on construction, then one token per prompt at a time.

    `there` (B, W) marks which of a row's W slots hold a prompt, `logits` (B, W, V) predict the next token. All prefixes
    have the same length. The cache has room for `steps` tokens of each prompt; more move it to a larger one.
    """

    def __init__(
        self,
        vlm: VLM,
        prefixes: Sequence[Prefix],
        prompts: Sequence[Sequence[Sequence[int]]],
        steps: int = _STEPS,
    ) -> None:
        self.vlm = vlm
        rows, numbers = zip(*(_packed(some) for some in prompts), strict=True)
        width = max(len(row.ends) for row in rows)
        device, prefix_length = vlm.device, len(prefixes[0])
        ids, positions, mask = (on_device(part, device) for part in pad_packed(rows, prefix_length, vlm.eos_token_id))
        shifts = on_device(torch.tensor([[prefix.shift] for prefix in prefixes]), device)
        placed = {name: on_device(part, device) for name, part in stack_numbers(numbers, ids.shape[1]).items()}

        self._cache = decoding_cache(prefixes, room_for(prompts, steps))
        there = torch.tensor([[i < len(row.ends) for i in range(width)] for row in rows])
        last_on_host = torch.tensor([row.last_index + [0] * (width - len(row.ends)) for row in rows])
        ends = torch.tensor([row.ends + [0] * (width - len(row.ends)) for row in rows])
        needed_on_host = last_on_host.unique()
        at_on_host = torch.searchsorted(needed_on_host, last_on_host)
        self.there, last, self._position, needed, at = (
            on_device(part, device) for part in (there, last_on_host, ends, needed_on_host, at_on_host)
        )
        self._position = self._position + prefix_length + shifts
        # What each prompt may attend to, (B, 1, W, length so far), extended with every token.
        self._seen = mask.gather(2, last[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
        self._itself = torch.eye(width, dtype=torch.bool, device=device).expand(len(rows), 1, -1, -1)

        outputs = forward(vlm, ids, positions + shifts, mask, self._cache, needed, **placed)
        self.logits = _pick(outputs.logits, at)
        hidden = outputs.get("region_hidden_state")
        self._hidden = None if hidden is None else _pick(hidden, last)

    @property
    def hidden(self) -> torch.Tensor:
        """(B, W, D): the input of the region head, for a model that has one."""
        assert self._hidden is not None
        return self._hidden

    def read(
        self, ids: torch.Tensor, *, coordinates: torch.Tensor | None = None, sizes: torch.Tensor | None = None
    ) -> None:
        """Append one token to each prompt (B, W), or instead one number (B, W) or two (B, W, 2) where they are not
        NaN."""
        self._seen = torch.cat([self._seen, self._itself], dim=-1)
        given = {name: part for name, part in (("coordinates", coordinates), ("sizes", sizes)) if part is not None}
        outputs = forward(self.vlm, ids, self._position, self._seen, self._cache, None, **given)
        self._position = self._position + 1
        self.logits = outputs.logits
        self._hidden = outputs.get("region_hidden_state")


def _packed(prompts: Sequence[Sequence[int]]) -> tuple[Packed, dict[int, tuple[float, ...]]]:
    """One row of prompts, and the numbers in it by their index in the row."""
    row = Packed()
    numbers: dict[int, tuple[float, ...]] = {}
    for prompt in prompts:
        numbers |= {len(row.ids) + index: value for index, value in numbers_of(prompt).items()}
        row.add(prompt)
    return row, numbers


def _pick(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, T, D) at (B, W) to (B, W, D)."""
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
