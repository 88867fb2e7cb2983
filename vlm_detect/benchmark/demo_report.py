"""The page at the end of `make demo`: scores before and after finetuning and of a CNN, curves, pairs, and some
answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_detect.benchmark.item_scores import item_scores, verdicts
from vlm_detect.benchmark.report_sections import explanations_part
from vlm_detect.infer.explanation import Explanation
from vlm_detect.pages.page import loss_figure, photo, render, roc_figure, write_page
from vlm_detect.records import Result
from vlm_detect.stats.metrics import figure_labels

_SIDE = 288  # pixels of an image with boxes: a ninth of it has room for a number


@dataclass(frozen=True)
class ExplainedImage:
    """An image, what it truly is in words, its verdict, and the explanation with checked reasons."""

    image: Image.Image
    truth: str
    label: str
    p_fake: float
    explanation: Explanation


def demo_report(
    out_html: str | Path,
    *,
    pairs: Sequence[tuple[Image.Image, Image.Image, str, str]],
    log_history: Sequence[Mapping[str, Any]],
    summaries: Mapping[str, Mapping[str, Any]],
    answers: Sequence[tuple[Image.Image, str, str, str, float | None]],
    notes: Sequence[str],
    explained: Sequence[ExplainedImage] = (),
    results: Mapping[str, Sequence[Result]] | None = None,
    title: str = "vlm-detect: the demo, from photos to a finetuned detector",
) -> None:
    """Write one self-contained page.

    Args:
        pairs: (photo, twin, caption, split).
        log_history: the log of transformers' Trainer; may be empty.
        summaries: the content of `summary.json` by model name, in the order of the table's columns.
        answers: (image, question, answer, truth, p_fake).
        notes: caveats, shown above everything else.
        explained: images with their explanations, shown with the places and the statuses of the reasons.
        results: the lines of `results.jsonl` by model name, for the ROC curves.
    """
    columns = witness_columns(summaries)
    baselines = {name: value for summary in summaries.values() for name, value in (summary.get("floors") or {}).items()}
    explanations = [s["explanations"] for s in summaries.values() if s.get("explanations")]
    html = render(
        "demo.html.j2",
        explained=[
            {
                "picture": photo(
                    one.explanation.draw(one.image, min_side=_SIDE),
                    f"{one.truth}, with the places that the reasons name",
                    max_side=_SIDE,
                ),
                "title": one.truth,
                "verdict": f"{one.label}, p_fake {one.p_fake:.3f}",
                "reasons": one.explanation.reasons,
            }
            for one in explained
        ],
        explanation_figures=explanations_part(explanations[-1]) if explanations else None,
        title=title,
        notes=list(notes),
        names=list(columns),
        rows=[
            {"name": label, "cells": [(s.get(name), (s.get("ci95") or {}).get(name)) for s in columns.values()]}
            for name, label in figure_labels().items()
            if any(summary.get(name) is not None for summary in summaries.values())
        ],
        baselines=", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in baselines.items()) or "none",
        loss=loss_figure(log_history),
        roc=roc_figure({name: verdicts(item_scores(lines, "logprob"))[:2] for name, lines in results.items()})
        if results
        else None,
        pairs=[
            {
                "real": photo(real, f"Photo: {caption}"),
                "twin": photo(twin, f"Generated twin: {caption}"),
                "caption": caption,
                "split": split,
            }
            for real, twin, caption, split in pairs
        ],
        answers=[
            {
                "pictures": [photo(image, f"Image of this question; it is: {truth}")],
                "question": question,
                "answer": answer,
                "truth": truth,
                "p_fake": p_fake,
                "correct": _agrees(answer, truth),
            }
            for image, question, answer, truth, p_fake in answers
        ],
    )
    write_page(out_html, html)


def witness_columns(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The figures of each model and, right behind those of a run with several witnesses, of each of these by itself."""
    columns: dict[str, Mapping[str, Any]] = {}
    for name, summary in summaries.items():
        columns[name] = summary
        for witness, alone in (summary.get("witnesses") or {}).items():
            columns[f"{name}: {witness.replace('_', ' ')} alone"] = alone
    return columns


def _agrees(answer: str, truth: str) -> bool:
    return answer.strip(" .").lower() == truth.strip(" .").lower()
