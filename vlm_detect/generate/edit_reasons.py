"""Sentences about a planted edit's operation and place: true by construction.

edit_reasons(row["edit"], size, seed="an image's id")     # one of kind operation, one of kind place with its box
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import product
from typing import Any

from vlm_detect.images.edits import EDITS
from vlm_detect.places import PLACES, place_of
from vlm_detect.records import Reason

_SUBJECTS = ("a part of it", "one area", "a region of it", "something in it")
_LIES = (
    "{subject} lies at the {place}.",
    "{subject} is at the {place}.",
    "at the {place} lies {subject}.",
    "look at the {place}: there lies {subject}.",
)
_CHANGED = ("what was changed", "the altered part", "the edit")


def edit_reasons(edit: Mapping[str, Any] | None, size: tuple[int, int], *, seed: str) -> list[Reason]:
    """From a row's column `edit` and the stored image's (width, height); unknown facts are omitted."""
    if not edit:
        return []
    rng, found = random.Random(f"{seed}:edit"), []
    if edit.get("operation") in EDITS:
        text = rng.choice(operation_wordings(edit["operation"]))
        found.append(Reason(text, "operation", "edited", "edit", checked_by="edit"))
    if edit.get("box"):
        x0, y0, x1, y1 = edit["box"]
        text = rng.choice(place_wordings(place_of(edit["box"], size)))
        found.append(Reason(text, "place", "edited", "edit", box=(x0, y0, x1, y1), checked_by="edit"))
    return found


def operation_wordings(operation: str) -> list[str]:
    return [_sentence(f"{subject} {done}.") for subject, done in product(_SUBJECTS, EDITS[operation].done)]


def place_wordings(place: str) -> list[str]:
    if place not in PLACES:
        raise ValueError(f"{place}: not one of {', '.join(PLACES)}")
    return [_sentence(lies.format(subject=subject, place=place)) for lies, subject in product(_LIES, _CHANGED)]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
