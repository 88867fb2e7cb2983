"""Verdicts that do not depend on how an image was encoded.

steadied(verdict, [("JPEG 75", verdict_of_that_copy), ...])
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_detect.infer.verdict import Label


def why_unsteady(label: Label, copies: Sequence[tuple[str, Label]]) -> str | None:
    """Why a verdict is "unsure" whose copies, named, have these labels; None where all agree with it."""
    others = [f"{other} {_as(name)}" for name, other in copies if other != label]
    if label == "unsure" or not others:
        return None
    return f"The verdict depends on the encoding: {label} as it is, {', '.join(others)}"


def _as(name: str) -> str:
    return f"as {name}" if name.startswith("JPEG") else f"when {name}"
