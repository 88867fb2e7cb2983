"""Assign photos to splits, and find near-duplicate photos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from vlm_detect.errors import UserError

# `unseen` has what was held out by generator or source; neither training nor validation reads it.
Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "unseen")

# Names of splits in other datasets, in lower case with "_" between words.
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_BITS = 64


def check_shares(validation: float, test: float) -> None:
    """Raise `UserError` if the two leave nothing for training."""
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UserError(f"--validation {validation:g} --test {test:g}: give fractions of at least 0 with a sum below 1")


def split_groups(groups: Iterable[str], *, validation: float = 0.1, test: float = 0.2) -> dict[str, Split]:
    """Each group's split, by the rank of its hash: no list is needed, and adding groups moves few of the others.

    With at least three groups every split has one; with at least six the test split has two, because an interval needs
    more than one photo. With two groups there is no validation split, with one only train. A share of 0 omits the
    split, and train always has a group.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    count = len(ranked)
    tests = max(round(test * count), 2 if count >= 6 else 1 if count >= 2 else 0) if test else 0
    tests = min(tests, count - (2 if validation and count >= 3 else 1))
    validations = max(round(validation * count), 1 if count >= 3 else 0) if validation else 0
    validations = min(validations, count - 1 - tests)
    splits: dict[str, Split] = {}
    for rank, group in enumerate(ranked):
        splits[group] = "test" if rank < tests else "validation" if rank < tests + validations else "train"
    return splits


def find_duplicates(phashes: Mapping[str, str], groups: Mapping[str, str], *, distance: int = 3) -> dict[str, str]:
    """id -> the id that it duplicates: perceptual hashes of another group at most `distance` bits away; the first is
    kept.

    Photos of one group (tiles of a photograph, frames of a film) may look alike: they share a split anyway.
    """
    seen = _Near(distance)
    repeats: dict[str, str] = {}
    for photo, phash in phashes.items():
        value = int(phash, 16)
        near = (other for other in seen.near(value) if groups[other] != groups[photo])
        if (first := next(near, None)) is not None:
            repeats[photo] = first
        else:
            seen.add(photo, value)
    return repeats


def merge_groups(phashes: Mapping[str, str], groups: Mapping[str, str], *, distance: int = 3) -> dict[str, str]:
    """id -> its group, after merging groups that contain near-duplicates of each other.

    For sets where near-duplicates have to be kept, such as a photo and its edit, but not be separated.
    """
    by_value: dict[int, str] = {}
    seen = _Near(distance)
    alike: list[tuple[str, str]] = []
    for photo, phash in phashes.items():
        value = int(phash, 16)
        if value in by_value:
            alike.append((photo, by_value[value]))
            continue
        alike += [(photo, other) for other in seen.near(value)]
        by_value[value] = photo
        seen.add(photo, value)
    return join_groups(groups, alike)


def join_groups(groups: Mapping[str, str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """id -> its group, after merging the groups of linked ids; the merged group has the second's name."""
    parent: dict[str, str] = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for one, other in links:
        parent[root(groups[one])] = root(groups[other])
    return {photo: root(group) for photo, group in groups.items()}


class _Near:
    """Finds 64-bit hashes at most `distance` bits away.

    Two such hashes agree completely in at least one of `distance + 1` bands, so only those that share a band are
    compared.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        bands = distance + 1
        edges = [band * _BITS // bands for band in range(bands + 1)]
        self._bands = [(edges[band], (1 << edges[band + 1] - edges[band]) - 1) for band in range(bands)]
        self._seen: dict[tuple[int, int], list[tuple[str, int]]] = {}

    def add(self, photo: str, value: int) -> None:
        for band, (shift, mask) in enumerate(self._bands):
            self._seen.setdefault((band, value >> shift & mask), []).append((photo, value))

    def near(self, value: int) -> Iterator[str]:
        for band, (shift, mask) in enumerate(self._bands):
            for photo, other in self._seen.get((band, value >> shift & mask), ()):
                if (other ^ value).bit_count() <= self._distance:
                    yield photo
