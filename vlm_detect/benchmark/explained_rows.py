"""The figures of explanations as rows of a table, of one run or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_detect.stats.intervals import FEW

# Where each stands in a summary's `explanations`; blind baselines follow what they are baselines of.
_ROWS = {
    "Verdict in words is right": "verdict_accuracy",
    "Verdict in words is the scored one": "agreement",
    "Reasons contradict the verdict": "contradictions",
    "Photos with an invented fault, by words": "faults_on_photos",
    "Generated images with a named fault, by words": "faults_on_generated",
    "Photos with a false fault": "measured.false_faults_on_photos",
    "Checked claims an image": "measured.claims_an_image",
    "Truth: claims that the image's own measurements confirm": "measured.truth",
    "… of another image of the label (blind)": "measured.truth_of_another_image",
    "… above that": "measured.truth_above_another_image",
    "… of the best constant text (blind)": "measured.truth_of_constant",
    "… of the model without its adapter": "base.measured.truth",
    "… of photos": "measured.by_label.real.truth",
    "… of generated images": "measured.by_label.generated.truth",
    "Recall: what is measured of the image is said": "measured.recall",
    "Specificity: fits its own image better than another of the label (blind: 0.5)": "measured.specificity",
    "Specificity of the model without its adapter": "base.measured.specificity",
    "Specificity, photos": "measured.by_label.real.specificity",
    "Specificity, generated images": "measured.by_label.generated.specificity",
    "Sentences that no measurement checks": "measured.unchecked_sentences",
    "Says that nothing stands out": "measured.says_ordinary",
    "Unchecked sentences that a judge finds likelier of their own image (blind: 0.5)": "judged.specificity",
    "Hiding the named place takes more from the verdict than hiding another (blind: 0.5)": "faithfulness.hiding",
    "The photo's pixels in the named place do so (blind: 0.5)": "faithfulness.pasting",
    "Planted edits: operation named": "edits.operation_named",
    "Planted edits: place named": "edits.place_named",
    "Planted edits: both named": "edits.both_named",
    "Planted edits: the named box hits": "hits.named.hit",
    "… by the evidence map": "hits.evidence_map.hit",
    "… any ninth of the image (blind)": "hits.chance.hit",
    "Planted edits: IoU of the named box": "hits.named.iou",
    "IoU of the evidence map's ninth": "hits.evidence_map.iou",
    "IoU of any ninth of the image (blind)": "hits.chance.iou",
}


def explained_rows(explained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{name, n, cells: one (point, interval) a run, few} of every figure that some run's `explanations` has.

    Those of few photos (`few`) are named so, unless all are: then the page says it once (`all_few`).
    """
    rows = []
    for name, path in _ROWS.items():
        figures = [figure_at(found, path) for found in explained]
        if any(figures):
            cells = [(figure.get("share"), figure.get("ci95")) for figure in figures]
            n, few = max(figure.get("n", 0) for figure in figures), any(map(is_of_few, figures))
            rows.append({"name": name, "n": n, "cells": cells, "few": few})
    points = [found.get("rouge_l") for found in explained]
    if any(point is not None for point in points):
        n = max(found.get("n", 0) for found in explained)
        few = any(is_of_few(found.get("contradictions") or {}) for found in explained)
        cells = [(point, None) for point in points]
        rows.append({"name": "ROUGE-L against the references", "n": n, "cells": cells, "few": few})
    if not all_few(rows):
        for row in rows:
            row["name"] += ": too few photos to say" if row["few"] else ""
    return rows


def all_few(rows: Sequence[Mapping[str, Any]]) -> bool:
    return bool(rows) and all(row["few"] for row in rows)


def is_of_few(figure: Mapping[str, Any]) -> bool:
    """Whether a figure is of so few source photos that its interval is too narrow to rely on."""
    return figure.get("groups", FEW) < FEW


def figure_at(found: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The figure at a dotted place of a run's `explanations`; empty where it has none."""
    value: Any = found
    for name in path.split("."):
        value = (value or {}).get(name)
    return value or {}
