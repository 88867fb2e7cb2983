"""Words of data generation's flags, checked when the command line is parsed. Receipts store them as strings."""

from __future__ import annotations

import hashlib
from argparse import ArgumentTypeError  # the one exception whose message argparse shows
from collections.abc import Collection
from typing import cast, get_args

from vlm_detect.records import ReasonSource, TwinKind

ADDABLE_SOURCES: tuple[ReasonSource, ...] = ("measured", "edit", "teacher", "imported")  # supported by add-reasons


def chosen_of(text: str, known: Collection[str]) -> str:
    """Comma-separated names, in the order of `known`. ArgumentTypeError for a name that is not in it."""
    if unknown := [name for name in text.split(",") if name not in known]:
        raise ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return ",".join(name for name in known if name in text.split(","))


class TwinKinds(str):
    """Comma-separated kinds of twins."""

    def __new__(cls, text: str) -> TwinKinds:
        return super().__new__(cls, chosen_of(text, get_args(TwinKind)))

    @property
    def kinds(self) -> list[TwinKind]:
        return [cast(TwinKind, kind) for kind in self.split(",")]


class EditOperations(str):
    """Comma-separated edits; empty: all built-in ones."""

    def __new__(cls, text: str = "") -> EditOperations:
        if not text:  # needs no import
            return super().__new__(cls)
        from vlm_detect.images.edits import EDITS  # lazy: imports NumPy and SciPy, which --help does not need

        return super().__new__(cls, chosen_of(text, EDITS))

    @classmethod
    def all_own(cls) -> EditOperations:
        """All built-in operations."""
        from vlm_detect.images.edits import EDITS

        return cls(",".join(EDITS.own))

    @property
    def operations(self) -> list[str]:
        return (self or self.all_own()).split(",")


class ReasonSources(str):
    """Comma-separated sources of reasons."""

    def __new__(cls, text: str) -> ReasonSources:
        return super().__new__(cls, chosen_of(text, ADDABLE_SOURCES))

    @property
    def sources(self) -> list[ReasonSource]:
        return [cast(ReasonSource, name) for name in self.split(",")]


class Layout(str):
    """The name of an importer."""

    def __new__(cls, text: str) -> Layout:
        from vlm_detect.data.image_sets import IMPORTERS  # lazy: imports `datasets`, which --help does not need

        if text not in IMPORTERS:
            raise ArgumentTypeError(f"{text}: choose from {', '.join(IMPORTERS)}")
        return super().__new__(cls, text)


class Share(str):
    """K/N, the Kth of N shares of the photos; empty: all of them."""

    def __new__(cls, text: str = "") -> Share:
        k, _, n = text.partition("/")
        if text and not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
            raise ArgumentTypeError(f"{text}: give K/N with K from 1 to N, such as 2/3")
        return super().__new__(cls, text)

    @property
    def shares(self) -> int:
        """N: the number of shares."""
        return int(self.split("/")[1]) if self else 1

    def has(self, group: str) -> bool:
        """Whether a group of photos is in this share. Its hash decides, so neither order nor content does."""
        if not self:
            return True
        place = int(hashlib.sha256(f"share/{group}".encode()).hexdigest(), 16) % self.shares
        return place == int(self.split("/")[0]) - 1
