"""Which photo goes to which split, and which photo is another one over again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_BITS = 64


def split_groups(groups: Iterable[str], *, validation: float = 0.1, test: float = 0.2) -> dict[str, Split]:
    """Each group's split, by the rank of its hash: no list to keep, and adding groups moves few of the others.

    From three groups on every split has one; from six on the test split has two, for over one photo no interval can be
    given. With two groups there is no validation split, with one only train.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    count = len(ranked)
    tests = max(round(test * count), 2 if count >= 6 else 1 if count >= 2 else 0)
    validations = max(round(validation * count), 1 if count >= 3 else 0)
    splits: dict[str, Split] = {}
    for rank, group in enumerate(ranked):
        splits[group] = "test" if rank < tests else "validation" if rank < tests + validations else "train"
    return splits


def find_duplicates(phashes: Mapping[str, str], groups: Mapping[str, str], *, distance: int = 3) -> dict[str, str]:
    """id -> the id that it repeats: perceptual hashes of another group at most `distance` bits away; the first stays.

    Photos of one group (tiles of a photograph, frames of a film) may look alike: they share a split in any case.
    Two hashes at most `distance` bits apart agree wholly in at least one of `distance + 1` bands, so only photos that
    share a band are compared.
    """
    bands = distance + 1
    edges = [band * _BITS // bands for band in range(bands + 1)]
    seen: dict[tuple[int, int], list[str]] = {}
    values: dict[str, int] = {}
    repeats: dict[str, str] = {}
    for photo, phash in phashes.items():
        value = int(phash, 16)
        keys = [(band, value >> edges[band] & ((1 << edges[band + 1] - edges[band]) - 1)) for band in range(bands)]
        near = (
            other
            for key in keys
            for other in seen.get(key, ())
            if groups[other] != groups[photo] and (values[other] ^ value).bit_count() <= distance
        )
        if (first := next(near, None)) is not None:
            repeats[photo] = first
            continue
        values[photo] = value
        for key in keys:
            seen.setdefault(key, []).append(photo)
    return repeats
