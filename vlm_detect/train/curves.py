"""The training curves of a run: loss.png, validation.png, and both on one self-contained page, training.html.

`overlay` has the curves of several runs on the same axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm_detect.pages.page import PALETTE, Picture, render, svg, write_page

_SCORES = {"eval_auroc": "AUROC", "eval_balanced_accuracy": "balanced accuracy"}
_History = Sequence[Mapping[str, Any]]
_Points = Sequence[tuple[float, float]]
_MOST_POINTS = 300  # of one run's line
_FEW_POINTS = 30  # so many are marked each
_STYLES = ("-", "--", ":", "-.")  # once the colours are used up


def write_curves(
    folder: Path, history: _History, *, title: str, command: str, loss_unit: str = "nats per answer token"
) -> None:
    """Plot the Trainer's log history into a run directory; a run without validation has no validation curve."""
    figures = {"loss": _loss(history, loss_unit), "validation": _validation(history)}
    pictures: list[Picture] = []
    for name, plot in figures.items():
        if plot is not None:
            figure, described = plot
            figure.savefig(folder / f"{name}.png", dpi=120)
            pictures.append(svg(figure, described, name.capitalize()))
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
    described = "; ".join(f"epoch {e['epoch']:.2f}: AUROC {e['eval_auroc']:.3f}" for e in scored)
    return figure, f"Validation scores. {described}"


def overlay(histories: Mapping[str, _History]) -> list[Picture]:
    """Loss over the steps and AUROC over the epochs of several runs, those of them that were logged.

    Of a long run each point of the loss is the mean over neighbouring steps, so that a page stays small.
    """
    losses = {name: [(e["step"], e["loss"]) for e in found if "loss" in e] for name, found in histories.items()}
    scores = {
        name: [(e["epoch"], e["eval_auroc"]) for e in found if "eval_auroc" in e] for name, found in histories.items()
    }
    thinned = {name: _thinned(points) for name, points in losses.items()}
    pictures = [
        _overlaid(thinned, title="Loss", x="Step", y="Loss", limits=(0, None)),
        _overlaid(scores, title="Validation AUROC", x="Epoch", y="AUROC", limits=(0, 1.02)),
    ]
    return [picture for picture in pictures if picture is not None]


def _overlaid(
    series: Mapping[str, _Points], *, title: str, x: str, y: str, limits: tuple[float, float | None]
) -> Picture | None:
    """One line a run, in the colour and the style of its place among all of them."""
    if not any(series.values()):
        return None
    figure, axes = _axes()
    shown = {name: points for name, points in series.items() if points}
    for number, name in enumerate(series):
        if name in shown:
            style, colour = _STYLES[number // len(PALETTE) % len(_STYLES)], PALETTE[number % len(PALETTE)]
            xs, ys = zip(*shown[name], strict=True)
            dots = "o" if len(xs) <= _FEW_POINTS else None  # a single point is no line
            axes.plot(xs, ys, color=colour, linestyle=style, marker=dots, markersize=4, linewidth=1.2, label=name)
    axes.set(xlabel=x, ylabel=y, ylim=limits, xlim=(0, None))
    figure.set_figheight(figure.get_figheight() + 0.2 * len(shown))
    figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=8)
    ends = "; ".join(f"{name} {points[-1][1]:.3f} at {x.lower()} {points[-1][0]:g}" for name, points in shown.items())
    return svg(figure, f"{title} of {len(shown)} runs. {ends}", title)


def _thinned(points: _Points) -> _Points:
    """At most `_MOST_POINTS` points, each the mean of as many neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
