"""Building blocks of self-contained HTML pages: charts and images as data URIs, and templates.

    html = render("report.html.j2", title="...", roc=roc_figure({"run": (y, p)}))

A page loads no external resources. Charts are SVG by matplotlib without its global state; photographs are JPEG
thumbnails. Every image has an alternative text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import auc, roc_curve

from vlm_detect.config import replacing
from vlm_detect.errors import UserError
from vlm_detect.stats.metrics import Array, reliability

PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
Interval = Sequence[float] | None


@dataclass(frozen=True)
class Picture:
    """An image for a page: a data URI, its alternative text, and optionally its size in pixels."""

    uri: str
    alt: str
    caption: str = ""


def render(template: str, **values: Any) -> str:
    """Render a template of `vlm_detect/pages/templates`; everything except our markup is escaped."""
    return _environment().get_template(template).render(**values)


def fragment(template: str, macro: str, **values: Any) -> Markup:
    """Render a macro of a template: part of a page."""
    return getattr(_environment().get_template(template).module, macro)(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vlm_detect.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure3"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    return environment


def render_pieces(template: str, **values: Any) -> Iterator[str]:
    """As `render`, piece by piece: a page of many rows never lies in memory at once."""
    return _environment().get_template(template).generate(**values)


def write_page(path: str | Path, html: str | Iterable[str]) -> None:
    """Write a page, or its pieces, in one step: an interrupted one leaves the old page as it is."""
    path = Path(path)
    try:
        with replacing(path) as file:
            file.writelines([html] if isinstance(html, str) else html)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror}); give another --out") from error


def photo(image: Image.Image, alt: str, *, max_side: int = 256, caption: str = "") -> Picture:
    """A thumbnail; a small image keeps all its pixels (PNG), so that the page shows what the model saw."""
    thumbnail = image.convert("RGB")
    small = max(thumbnail.size) <= 128
    thumbnail.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG") if small else thumbnail.save(buffer, "JPEG", quality=85)
    return Picture(_uri(buffer.getvalue(), "image/png" if small else "image/jpeg"), alt, caption)


def svg(figure: Figure, alt: str, caption: str = "") -> Picture:
    buffer = io.BytesIO()
    # A "$" in a name is not mathematics, neither in existing texts nor in ticks created on drawing.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    # No date and no random ids in the file, so that the same values give the same page.
    with rc_context({"svg.hashsalt": "vlm-detect", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return Picture(_uri(buffer.getvalue(), "image/svg+xml"), alt, caption)


def roc_figure(runs: Mapping[str, tuple[Array, Array]]) -> Picture:
    """ROC of one or several runs, each (y, p)."""
    figure, axes = _axes()
    areas = []
    for colour, (name, (y, p)) in zip(_colours(len(runs)), runs.items(), strict=True):
        fpr, tpr, _ = roc_curve(y, p)
        area = auc(fpr, tpr)
        areas.append(f"{name} {area:.3f}")
        axes.plot(fpr, tpr, color=colour, label=f"{name} ({area:.3f})")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel="False-positive rate (photos called generated)", ylabel="True-positive rate", aspect="equal")
    _name_lines(figure, axes)
    return svg(figure, f"ROC curve; area under it: {', '.join(areas)}", "ROC")


def reliability_figure(runs: Mapping[str, tuple[Array, Array]]) -> Picture:
    """Share of generated images against the predicted probability, in ten bins; dot size grows with the number of
    items."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="calibrated")
    for colour, (name, (y, p)) in zip(_colours(len(runs)), runs.items(), strict=True):
        rows = np.array(reliability(y, p))
        axes.plot(rows[:, 0], rows[:, 1], color=colour, linewidth=1)
        axes.scatter(rows[:, 0], rows[:, 1], s=15 + 120 * rows[:, 2] / len(y), color=colour, clip_on=False)
        axes.plot([], [], color=colour, marker="o", markersize=5, linewidth=1, label=name)  # one size in the legend
    axes.set(xlabel="Stated probability", ylabel="Share that is generated", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    _name_above(figure, axes, title="The larger a dot, the more images it stands for")
    alt = "Reliability diagram: share of generated images against the stated probability of that"
    return svg(figure, alt, "Reliability")


def bars_figure(rows: Mapping[str, Mapping[str, Any]], title: str) -> Picture:
    """One bar per name with its 95 % interval; rows are {name: {n, accuracy, ci95}}."""
    names = list(rows)[::-1]
    figure = Figure(figsize=(4.6, 0.7 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    values = [rows[name]["accuracy"] for name in names]
    axes.barh(names, values, color=PALETTE[0], alpha=0.85)
    for place, name in enumerate(names):
        if interval := rows[name].get("ci95"):
            axes.plot(interval, [place, place], color="0.15", linewidth=1.2)
        axes.text(1.02, place, f"n = {rows[name]['n']}", va="center", fontsize=8, color="0.35")
    axes.set(xlim=(0, 1), xlabel="Accuracy")
    _clean(axes)
    listed = ", ".join(f"{name} {rows[name]['accuracy']:.2f}" for name in rows)
    return svg(figure, f"{title}: {listed}", title)


def grouped_bars_figure(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Picture:
    """Accuracy of several runs, a group of bars per name; runs are {run: {name: {n, accuracy, ci95}}}."""
    names = sorted({name for rows in runs.values() for name in rows})[::-1]
    height = 0.8 / len(runs)
    figure = Figure(figsize=(4.6, 0.9 + (0.2 + 0.17 * len(runs)) * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, (colour, (run, rows)) in enumerate(zip(_colours(len(runs)), runs.items(), strict=True)):
        known = [(place, rows[name]) for place, name in enumerate(names) if name in rows]
        places = [place + 0.4 - height * (i + 0.5) for place, _ in known]
        axes.barh(places, [row["accuracy"] for _, row in known], height * 0.9, color=colour, alpha=0.85, label=run)
        for place, (_, row) in zip(places, known, strict=True):
            if interval := row.get("ci95"):
                axes.plot(interval, [place, place], color="0.15", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1), xlabel="Accuracy")
    _clean(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    described = {
        run: ", ".join(f"{name} {row['accuracy']:.2f}" for name, row in rows.items()) for run, rows in runs.items()
    }
    return svg(figure, f"{title}. " + "; ".join(f"{run}: {text}" for run, text in described.items()), title)


def lines_figure(
    runs: Mapping[str, Sequence[tuple[float, float]]], clean: Mapping[str, float], *, unit: str, title: str
) -> Picture:
    """AUROC of several runs against one condition's level, each with its value on clean images as a dotted line."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for colour, (run, points) in zip(_colours(len(runs)), runs.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=run)
        axes.axhline(clean[run], color=colour, linestyle=":", linewidth=1)
    levels = sorted({level for points in runs.values() for level, _ in points})
    axes.set(xlabel=unit, ylabel="AUROC (dotted: clean)", ylim=(0, 1.02))
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    _clean(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    described = "; ".join(f"{run}: " + ", ".join(f"{x:g} {y:.2f}" for x, y in points) for run, points in runs.items())
    return svg(figure, f"AUROC by {unit}. {described}", title)


def confusion_figure(counts: Array, labels: Sequence[str], title: str = "Confusion") -> Picture:
    """The confusion matrix `counts` (truth, prediction) as a shaded table; labels name rows and columns."""
    shape = counts.shape
    figure = Figure(figsize=(1.4 + 0.9 * shape[1], 1.0 + 0.8 * shape[0]), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(shape[0]):
        for column in range(shape[1]):
            colour = "white" if shares[row, column] > 0.6 else "0.1"
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour)
    axes.set_xticks(range(shape[1]), labels[: shape[1]])
    axes.set_yticks(range(shape[0]), labels[: shape[0]])
    axes.set(xlabel="Said", ylabel="True")
    cells = "; ".join(
        f"true {labels[row]} predicted {labels[column]}: {int(counts[row, column])}"
        for row in range(shape[0])
        for column in range(shape[1])
    )
    return svg(figure, f"{title}: {cells}", title)


def loss_figure(log_history: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Training and validation loss over the steps of a `log_history`, or None if nothing was logged."""
    series = {
        name: [(row["step"], row[key]) for row in log_history if key in row and "step" in row]
        for name, key in (("training", "loss"), ("validation", "eval_loss"))
    }
    if not any(series.values()):
        return None
    figure, axes = _axes()
    for colour, (name, points) in zip(PALETTE, series.items(), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
    axes.set(xlabel="Step", ylabel="Loss", ylim=(0, None))
    axes.legend(frameon=False)
    ends = ", ".join(f"{name} {p[0][1]:.3f} to {p[-1][1]:.3f}" for name, p in series.items() if p)
    return svg(figure, f"Loss over the steps: {ends}", "Loss")


def histogram_figure(values: Mapping[str, Sequence[float]], title: str, unit: str) -> Picture:
    """A histogram with one outline per name, on common bins."""
    figure, axes = _axes()
    every = np.concatenate([np.asarray(found, float) for found in values.values()])
    low, high = float(every.min()), float(every.max())
    bins = np.linspace(low, high if high > low else low + 1, 31)
    for colour, (name, found) in zip(_colours(len(values)), values.items(), strict=True):
        axes.hist(found, bins=bins, color=colour, alpha=0.35)
        axes.hist(found, bins=bins, color=colour, histtype="step", label=f"{name} ({len(found)})")
    axes.set(xlabel=unit, ylabel="Images")
    axes.legend(frameon=False)
    medians = ", ".join(f"{name} median {np.median(found):g}" for name, found in values.items())
    return svg(figure, f"{title}, {unit}: {medians}; from {low:g} to {high:g}", title)


def areas_figure(rows: Sequence[tuple[str, float, Sequence[float], bool]], line: float, title: str) -> Picture:
    """Areas under ROC curves with their intervals, from top to bottom; rows are (name, area, interval, highlighted)."""
    figure = Figure(figsize=(5.6, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, area, interval, stands_out) in enumerate(rows[::-1]):
        colour = PALETTE[7] if stands_out else PALETTE[0]
        axes.plot(interval, [place, place], color=colour, linewidth=1.5)
        axes.scatter([area], [place], color=colour, s=22, zorder=3)
    axes.axvline(0.5, color="0.6", linestyle=":", linewidth=1)
    axes.axvline(line, color=PALETTE[7], linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows[::-1]])
    axes.set(xlim=(0, 1.02), xlabel="AUC")
    _clean(axes)
    return svg(figure, f"{title}: " + ", ".join(f"{name} {area:.2f}" for name, area, *_ in rows), title)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _name_lines(figure: Figure, axes: Any) -> None:
    """Place the legend inside for few names, otherwise above, in a taller figure."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) <= 4:
        axes.legend(loc="lower right", frameon=False)
        return
    _name_above(figure, axes)


def _name_above(figure: Figure, axes: Any, title: str | None = None) -> None:
    """The legend above the axes, which hides nothing of what is drawn, in a figure that much taller."""
    rows = -(-len(axes.get_legend_handles_labels()[1]) // 2) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8, title=title, title_fontsize=8)


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _colours(n: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def _uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
