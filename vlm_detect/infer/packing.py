"""Pack many continuations of one prefix into a single row: the layout, and the mask that separates them.

    prefix | question 1 | answer 1a | answer 1b | question 2 | answer 2a | ...

A segment attends to the prefix, the segments it continues, and itself up to the current token. Positions continue from
the parent segment, so every token has the position that it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Packed:
    """A growing row of segments after a prefix; `positions` count from the prefix's end."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)  # of each token
    ancestors: list[frozenset[int]] = field(default_factory=list)  # of each segment, itself included
    ends: list[int] = field(default_factory=list)  # position after each segment
    last_index: list[int] = field(default_factory=list)  # index in the row of each segment's last token

    def add(self, ids: Sequence[int], parent: int | None = None) -> int:
        """Append a segment that continues `parent` (None: the prefix); returns its index."""
        number = len(self.ancestors)
        start = 0 if parent is None else self.ends[parent]
        self.ancestors.append(frozenset([number]) | (frozenset() if parent is None else self.ancestors[parent]))
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.segments += [number] * len(ids)
        self.ends.append(start + len(ids))
        self.last_index.append(len(self.ids) - 1)
        return number

    def mask(self, prefix_length: int, length: int) -> torch.Tensor:
        """(length, prefix_length + length) bool, True where a token of the row may attend; padding attends to the
        prefix."""
        family = torch.zeros(len(self.ancestors), len(self.ancestors), dtype=torch.bool)
        for number, ancestors in enumerate(self.ancestors):
            family[number, list(ancestors)] = True
        segments = torch.tensor(self.segments, dtype=torch.long)
        row = torch.zeros(length, length, dtype=torch.bool)
        row[: len(segments), : len(segments)] = family[segments][:, segments].tril()
        return torch.cat([torch.ones(length, prefix_length, dtype=torch.bool), row], dim=1)


def pad_packed(
    rows: Sequence[Packed], prefix_length: int, pad_id: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of rows after prefixes of equal length: ids (B, T), positions (B, T), mask (B, 1, T, prefix + T) bool.

    prefix + T is a multiple of `multiple`.
    """
    longest = prefix_length + max(len(row.ids) for row in rows)
    length = -(-longest // multiple) * multiple - prefix_length
    ids = torch.full((len(rows), length), pad_id)
    positions = torch.full((len(rows), length), prefix_length)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        positions[i, : len(row.ids)] = torch.tensor(row.positions, dtype=torch.long) + prefix_length
    mask = torch.stack([row.mask(prefix_length, length) for row in rows])
    return ids, positions, mask[:, None]
