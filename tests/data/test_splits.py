"""Splits by group, and photos that are one photo twice."""

from __future__ import annotations

from collections import Counter

import pytest

from vlm_detect.data.splits import find_duplicates, join_groups, merge_groups, split_groups


@pytest.mark.parametrize(
    ("count", "train", "validation", "test"),
    [(1, 1, 0, 0), (2, 1, 0, 1), (3, 1, 1, 1), (6, 3, 1, 2), (9, 6, 1, 2), (100, 70, 10, 20)],
)
def test_every_split_has_its_groups(count: int, train: int, validation: int, test: int) -> None:
    splits = Counter(split_groups([f"photo{i}" for i in range(count)]).values())
    assert (splits["train"], splits["validation"], splits["test"]) == (train, validation, test)


@pytest.mark.parametrize(("validation", "test"), [(0.35, 0.6), (0.49, 0.5), (0.9, 0.05), (0.0, 0.9), (0.9, 0.0)])
def test_large_shares_leave_training_images(validation: float, test: float) -> None:
    for count in range(12):
        splits = split_groups([f"photo{i}" for i in range(count)], validation=validation, test=test)
        assert len(splits) == count
        assert "train" in splits.values() or not count
        if count >= 3:
            assert ("validation" in splits.values(), "test" in splits.values()) == (validation > 0, test > 0)


def test_a_split_depends_on_the_groups_alone() -> None:
    groups = [f"photo{i}" for i in range(50)]
    assert split_groups(groups) == split_groups([*reversed(groups), *groups])
    before, after = split_groups(groups), split_groups([*groups, "one more"])
    assert sum(before[group] != after[group] for group in groups) <= 2


def test_repeats_are_found_across_groups_only() -> None:
    base = 0x0123456789ABCDEF
    phashes = {"a": base, "b": base ^ 0b111, "c": base ^ 0b1111, "d": base ^ (1 << 63 | 1 << 40 | 1 << 20), "e": base}
    groups = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "1"}
    found = find_duplicates({photo: f"{value:016x}" for photo, value in phashes.items()}, groups)
    assert found == {"b": "a", "d": "a"}


def test_groups_with_near_copies_become_one() -> None:
    base = 0x0123456789ABCDEF
    phashes = {"a": base, "b": base ^ 0b11, "c": base ^ 0b1111, "d": base, "e": ~base & (1 << 64) - 1}
    groups = {photo: f"group of {photo}" for photo in phashes}
    merged = merge_groups({photo: f"{value:016x}" for photo, value in phashes.items()}, groups, distance=2)
    assert merged["a"] == merged["b"] == merged["c"] == merged["d"]  # c by way of b
    assert merged["e"] == "group of e"


def test_joined_groups_are_not_split() -> None:
    groups = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "2"}
    joined = join_groups(groups, [("a", "b"), ("c", "e")])
    assert joined["a"] == joined["b"] == joined["c"] == joined["e"] != joined["d"]


def test_a_share_of_zero_omits_the_split() -> None:
    assert set(split_groups([f"{i}" for i in range(20)], test=0).values()) == {"train", "validation"}
    assert set(split_groups([f"{i}" for i in range(20)], test=0, validation=0).values()) == {"train"}
