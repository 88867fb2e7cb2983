"""The training curves of a run: loss.png, validation.png, and both on one self-contained page, training.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm_detect.pages.page import PALETTE, Picture, render, svg, write_page

_SCORES = {"eval_auroc": "AUROC", "eval_balanced_accuracy": "balanced accuracy"}
_History = Sequence[Mapping[str, Any]]


def write_curves(
    folder: Path, history: _History, *, title: str, command: str, loss_unit: str = "nats per answer token"
) -> None:
    """Plot the Trainer's log history into a run directory; a run without validation has no validation curve."""
    figures = {"loss": _loss(history, loss_unit), "validation": _validation(history)}
    pictures: list[Picture] = []
    for name, drawn in figures.items():
        if drawn is not None:
            figure, told = drawn
            figure.savefig(folder / f"{name}.png", dpi=120)
            pictures.append(svg(figure, told, name.capitalize()))
    rows = [entry for entry in history if "eval_auroc" in entry]
    write_page(
        folder / "training.html", render("training.html.j2", title=title, command=command, pictures=pictures, rows=rows)
    )


def _loss(history: _History, unit: str) -> tuple[Figure, str] | None:
    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    if not points:
        return None
    figure, axes = _axes()
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=PALETTE[0], linewidth=1.2)
    axes.set(xlabel="Step", ylabel=f"Loss ({unit})", xlim=(0, 1.05 * steps[-1]), ylim=(0, None))
    return figure, f"Loss from {losses[0]:.3f} at step {steps[0]} to {losses[-1]:.3f} at step {steps[-1]}"


def _validation(history: _History) -> tuple[Figure, str] | None:
    scored = [entry for entry in history if "eval_auroc" in entry]
    if not scored:
        return None
    figure, axes = _axes()
    for colour, (key, name) in zip(PALETTE, _SCORES.items(), strict=False):
        axes.plot([e["epoch"] for e in scored], [e[key] for e in scored], color=colour, marker="o", label=name)
    axes.axhline(0.5, color="0.6", linestyle=":", linewidth=1, label="chance")
    # From the start, with room behind the last one: a single score would stand on an axis of its own rounding errors.
    axes.set(xlabel="Epoch", ylabel="On the validation images", xlim=(0, 1.05 * scored[-1]["epoch"]), ylim=(0, 1.02))
    axes.legend(loc="lower right", frameon=False)
    told = "; ".join(f"epoch {e['epoch']:.2f}: AUROC {e['eval_auroc']:.3f}" for e in scored)
    return figure, f"Validation scores. {told}"


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
