"""Edits as part of the render step: one of each photo and one of its first twin, made by `edits.py`.

A photo's edit gives a pair of real and edited, a twin's a pair of generated and edited. A splice copies from another
photo of the shard; its id is recorded, so that the two photos can be kept in one split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_detect.generate.edits import random_edit
from vlm_detect.images.decode import ImageRejected
from vlm_detect.images.edits import EDITS, Paint


@dataclass(frozen=True)
class EditSubject:
    """An image to edit."""

    of: str  # "photo", or the kind of a twin
    image: Image.Image
    seed: int
    donor: tuple[str, Image.Image] | None  # (id, pixels) of another photo
    paint: Paint | None


def donor_groups(groups: Iterable[str]) -> dict[str, str]:
    """group -> the one other group that its splices copy from: in pairs, with one triple for an odd number.

    A photo and its donor have to share a split. With unrestricted donors, splices would soon merge all groups into one.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    partners = {}
    for i, group in enumerate(ranked):
        other = i + 1 if i % 2 == 0 and i + 1 < len(ranked) else i - 1
        if other >= 0:
            partners[group] = ranked[other]
    return partners


def random_edits(
    subjects: Sequence[EditSubject], operations: Sequence[str]
) -> Iterator[tuple[EditSubject, dict[str, Any], Image.Image | ImageRejected]]:
    """(subject, value of the column `edit`, the edited image or why it failed) for each."""
    for subject in subjects:
        try:
            edited = random_edit(
                subject.image,
                subject.seed,
                operations=operations,
                donor=subject.donor[1] if subject.donor else None,
                paint=subject.paint,
            )
        except ImageRejected as rejected:
            yield subject, {}, rejected
            continue
        facts = {
            "of": subject.of,
            "operation": edited.operation,
            "box": list(edited.box),
            "strength": edited.strength,
            "donor": subject.donor[0] if subject.donor and EDITS[edited.operation].needs_donor else None,
            "attempt": edited.attempt,
        }
        yield subject, facts, edited.image
