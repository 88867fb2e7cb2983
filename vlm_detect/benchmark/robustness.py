"""Figures under each condition, on both classes and on each alone, from one set of answers a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from vlm_detect.benchmark.perturb import UNITS, Condition
from vlm_detect.benchmark.summary import ItemScore, figures_of, rounded
from vlm_detect.pages.page import PALETTE, Picture, svg
from vlm_detect.stats.intervals import RESAMPLES

SIDES = ("both", "real_only", "generated_only")


@dataclass(frozen=True)
class Answered:
    """What a model says of every item under one condition."""

    condition: Condition
    scores: Mapping[str, ItemScore]


def robustness(answered: Sequence[Answered], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Figures by condition; the first condition is the clean one.

    A condition on one class alone takes that class's answers under it and the other's clean ones: what a detector
    does that judges the treatment and not the image shows there.
    """
    clean = answered[0].scores
    found: dict[str, Any] = {}
    for one in answered:
        sides = {
            "both": list(one.scores.values()),
            "real_only": _mixed(one.scores, clean, changed_fake=False),
            "generated_only": _mixed(one.scores, clean, changed_fake=True),
        }
        found[one.condition.name] = {
            "family": one.condition.family,
            "level": one.condition.level,
            **{side: figures_of(scores, resamples=resamples) for side, scores in sides.items()},
        }
    return rounded(found)


def curve_figures(found: Mapping[str, Any]) -> list[Picture]:
    """For each family the AUROC on both classes, and what share of each class alone is still told right."""
    pictures = []
    for family, unit in UNITS.items():
        rows = [row for row in found.values() if row["family"] == family]
        if not rows:
            continue
        levels = [row["level"] for row in rows]
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        series = {
            "AUROC": [row["both"]["auroc"] for row in rows],
            "generated found (TPR)": [row["both"]["tpr"] for row in rows],
            "photos left alone (TNR)": [row["both"]["tnr"] for row in rows],
        }
        for colour, (label, values) in zip(PALETTE, series.items(), strict=False):
            axes.plot(levels, values, color=colour, marker="o", markersize=4, label=label)
        clean = next(iter(found.values()))["both"]["auroc"]
        if clean is not None:
            axes.axhline(clean, color="0.6", linestyle=":", linewidth=1, label="AUROC, clean")
        axes.set(xlabel=unit, ylim=(0, 1.02))
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
        told = ", ".join(f"{level:g}: {_shown(row['both']['auroc'])}" for level, row in zip(levels, rows, strict=True))
        pictures.append(svg(figure, f"AUROC by {unit}: {told}", family.capitalize()))
    return pictures


def _mixed(changed: Mapping[str, ItemScore], clean: Mapping[str, ItemScore], *, changed_fake: bool) -> list[ItemScore]:
    return [changed[id_] if score.is_fake == changed_fake else score for id_, score in clean.items()]


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
