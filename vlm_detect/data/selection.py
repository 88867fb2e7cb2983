"""Select the images of a set, the held-out ones and their splits, on the list before any image is read."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import PurePath

from vlm_detect.data.splits import Split
from vlm_detect.errors import UserError
from vlm_detect.records import Label


@dataclass(frozen=True)
class Entry:
    """One image of a set; `where` is its path or its place in a dataset. Without a label it is skipped."""

    where: str
    label: Label | None
    generator: str = ""  # empty for a real image
    object_class: str = ""
    group: str | None = None  # None: the image is its own group
    split: Split | None = None  # as published
    licence: str | None = None
    place: tuple[int, int] = (0, 0)  # in a set of rows: (part, row)
    mask: bytes | None = None  # the file of its edit mask, if the set has masks; known once it is read
    mask_file: str = ""  # the path of that file, if it is one of its own


@dataclass(frozen=True)
class Selection:
    """The selection from a set."""

    limit: int | None = None
    hold_out: tuple[str, ...] = ()  # generator=NAME, source=GLOB
    labels: tuple[tuple[str, Label], ...] = ()  # the set's words for labels
    edited: bool = False  # CIFAKE parquet: include the edits next to it
    image_column: str = ""
    label_column: str = ""
    mask_column: str = ""


def select(entries: Sequence[Entry], selection: Selection) -> list[Entry]:
    """The selected entries, in order, with `split` "unseen" for held-out ones."""
    return balanced(hold_out(entries, selection.hold_out), selection.limit)


def balanced(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """`limit` entries, balanced over labels, and within a label over published splits and generators."""
    if limit is None or limit >= len(entries):
        return list(entries)
    strata: dict[str, dict[tuple[Split | None, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, entry in enumerate(entries):
        if entry.label is not None:
            strata[entry.label][entry.split, entry.generator].append(i)
    by_label = [list(_in_turns(list(by_kind.values()))) for by_kind in strata.values()]
    return [entries[i] for i in sorted(itertools.islice(_in_turns(by_label), limit))]


def _in_turns(lists: Sequence[list[int]]) -> Iterator[int]:
    for row in itertools.zip_longest(*lists):
        yield from (value for value in row if value is not None)


def check_hold_out(rules: Sequence[str]) -> None:
    """Raise `UserError` for an invalid rule."""
    for rule in rules:
        kind, _, value = rule.partition("=")
        if kind not in ("generator", "source") or not value:
            raise UserError(f"--hold_out {rule}: give generator=NAME, or source=GLOB for paths")


def is_held_out(rules: Sequence[str], generator: str, where: str) -> bool:
    """Whether a rule matches this generator, a folder of that name in the path `where`, or `where` by its glob."""
    for rule in rules:
        kind, _, value = rule.partition("=")
        if kind == "generator" and (value == generator or value in PurePath(where).parts[:-1]):
            return True
        if kind == "source" and fnmatch(where, value):
            return True
    return False


def hold_out(entries: Sequence[Entry], rules: Sequence[str]) -> list[Entry]:
    """Move the entries that match a rule to the unseen split, together with real images.

    If a held-out generator has no real images of its own (in a folder of its name), as many real images are moved as it
    has fakes, but at most a fifth of those not published for training.
    """
    check_hold_out(rules)
    if not rules:
        return list(entries)
    marked = [replace(e, split="unseen") if is_held_out(rules, e.generator, e.where) else e for e in entries]
    unseen = [entry.label for entry in marked if entry.split == "unseen"]
    if not unseen:
        raise UserError(f"--hold_out {' '.join(rules)}: no image matches")
    if "real" in unseen:
        return marked
    free = [i for i, entry in enumerate(marked) if entry.label == "real" and entry.split in (None, "test")]
    for i in free[: min(len(unseen), math.ceil(len(free) / 5))]:
        marked[i] = replace(marked[i], split="unseen")
    return marked
