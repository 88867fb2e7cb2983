"""Which images of a set are taken, which are held out, and where each goes: decided on the list, before any is read."""

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
    """One image of a set; `where` is its path or its place in a dataset. Without a label it is left out."""

    where: str
    label: Label | None
    generator: str = ""  # of a real image: empty
    object_class: str = ""
    group: str | None = None  # None: the image is a group of its own
    split: Split | None = None  # as published
    licence: str | None = None
    place: tuple[int, int] = (0, 0)  # in a set of rows: (which part, which row of it)
    mask: bytes | None = None  # the file of the mask of its edit, where the set has some; known once it is read


@dataclass(frozen=True)
class Selection:
    """What of a set is wanted."""

    limit: int | None = None
    hold_out: tuple[str, ...] = ()  # generator=NAME, source=GLOB
    labels: tuple[tuple[str, Label], ...] = ()  # words of the set's own, and the labels that they mean
    edited: bool = False  # of CIFAKE's parquet: the edits that lie next to it
    image_column: str = ""
    label_column: str = ""
    mask_column: str = ""


def select(entries: Sequence[Entry], selection: Selection) -> list[Entry]:
    """The entries that are wanted, in their order, with `split` "unseen" where they are held out."""
    return balanced(hold_out(entries, selection.hold_out), selection.limit)


def balanced(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """`limit` entries: labels alike as far as they go, and within a label the published splits and the generators."""
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
    """`UserError` for a rule that is none."""
    for rule in rules:
        kind, _, value = rule.partition("=")
        if kind not in ("generator", "source") or not value:
            raise UserError(f"--hold_out {rule}: give generator=NAME, or source=GLOB for paths")


def is_held_out(rules: Sequence[str], generator: str, where: str) -> bool:
    """Whether a rule names this generator, a folder of that name on the way to `where`, or `where` by its glob."""
    for rule in rules:
        kind, _, value = rule.partition("=")
        if kind == "generator" and (value == generator or value in PurePath(where).parts[:-1]):
            return True
        if kind == "source" and fnmatch(where, value):
            return True
    return False


def hold_out(entries: Sequence[Entry], rules: Sequence[str]) -> list[Entry]:
    """The entries with those that a rule names in the unseen split, and real images next to them there.

    Where a held-out generator has no real images of its own (a folder of its name may hold some), as many are moved as
    it has fakes, though no more than a fifth of those that are not published for training.
    """
    check_hold_out(rules)
    if not rules:
        return list(entries)
    marked = [replace(e, split="unseen") if is_held_out(rules, e.generator, e.where) else e for e in entries]
    unseen = [entry.label for entry in marked if entry.split == "unseen"]
    if not unseen:
        raise UserError(f"--hold_out {' '.join(rules)}: no image is by that generator or from that source")
    if "real" in unseen:
        return marked
    free = [i for i, entry in enumerate(marked) if entry.label == "real" and entry.split in (None, "test")]
    for i in free[: min(len(unseen), math.ceil(len(free) / 5))]:
        marked[i] = replace(marked[i], split="unseen")
    return marked
