"""What of a set is taken, and what is held out for the unseen split."""

from __future__ import annotations

from collections import Counter

import pytest

from vlm_detect.data.selection import Entry, Selection, balanced, hold_out, select
from vlm_detect.errors import UserError


def entries() -> list[Entry]:
    fakes = [Entry(f"fakes/{name}/{i}.png", "generated", name) for name in ("a", "b") for i in range(20)]
    return [*fakes, *(Entry(f"photos/{i}.png", "real") for i in range(50))]


def test_a_held_out_generator_holds_out_its_photos() -> None:
    unseen = [entry for entry in hold_out(entries(), ["generator=b"]) if entry.split == "unseen"]
    assert Counter(entry.label for entry in unseen) == {"generated": 20, "real": 10}  # a fifth of the photos at most
    assert {entry.generator for entry in unseen} == {"b", ""}


def test_photos_published_for_training_are_never_unseen() -> None:
    trained = [Entry(e.where, e.label, e.generator, split="train") for e in entries()]
    unseen = [entry for entry in hold_out(trained, ["generator=b"]) if entry.split == "unseen"]
    assert {entry.label for entry in unseen} == {"generated"}


def test_a_source_is_held_out_by_its_path() -> None:
    marked = hold_out(entries(), ["source=photos/1*"])
    assert {e.where for e in marked if e.split == "unseen"} == {
        "photos/1.png",
        *(f"photos/1{i}.png" for i in range(10)),
    }


def test_a_limit_keeps_the_order_and_the_balance() -> None:
    taken = balanced(entries(), 12)
    assert taken == [entry for entry in entries() if entry in taken]
    assert Counter((entry.label, entry.generator) for entry in taken) == {
        ("generated", "a"): 3,
        ("generated", "b"): 3,
        ("real", ""): 6,
    }
    assert balanced(entries(), 1000) == select(entries(), Selection()) == entries()


@pytest.mark.parametrize("rule", ["b", "generator=", "model=b", "generator=nobody"])
def test_a_rule_that_holds_nothing_out_is_an_error(rule: str) -> None:
    with pytest.raises(UserError, match="--hold_out"):
        hold_out(entries(), [rule])
