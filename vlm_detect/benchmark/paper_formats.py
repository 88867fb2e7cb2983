"""The table of `vlm-detect paper-table` as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEAD = ("Set", "Model", "Images", "bAcc", "Real", "Fake", "AP", "AUROC", "Worst generator", "Leaks of the set (AUC)")
SHOWN = ("balanced_accuracy", "real_accuracy", "fake_accuracy", "ap", "auroc")
NOTE = (
    "In percent, with 95 % intervals, at the threshold 0.5; bAcc: balanced accuracy; Real, Fake: accuracy on each "
    "class; worst generator: accuracy on its images. Aligned: all images of a set at one size and one JPEG quality. "
    "Leaks: probes that tell the classes of the published set apart without its content, by the audit."
)
_ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPED |= {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(table: Mapping[str, Any]) -> str:
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(cell.replace("|", r"\|") for cell in cells) for cells in _cells(table)]
    return "\n".join([*lines, "", NOTE, ""])


def latex(table: Mapping[str, Any]) -> str:
    """A tabular for the booktabs package; a rule separates the sets."""
    lines = [rf"% {NOTE}", rf"\begin{{tabular}}{{ll{'r' * 6}ll}}", r"\toprule", _latex_line(HEAD), r"\midrule"]
    sets = [row["set"] for row in table["rows"]]
    for i, cells in enumerate(_cells(table)):
        if i and sets[i] != sets[i - 1]:
            lines.append(r"\midrule")
        lines.append(_latex_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cells(table: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in table["rows"]:
        worst = row["worst_generator"]
        yield [
            f"{row['set']}, aligned to {row['side']} px" if row["condition"] == "aligned" else row["set"],
            row["model"],
            str(row["n"]),
            *(_percent(row[name], row["ci95"][name]) for name in SHOWN),
            "-" if worst is None else f"{worst['name']} {_percent(worst['accuracy'], worst['ci95'])}",
            "as published" if row["condition"] == "aligned" else _leaks(table["sets"][row["set"]]["probes"]),
        ]


def _leaks(probes: Sequence[Mapping[str, Any]]) -> str:
    """The leaks, worst first, or the largest probe where there is none."""
    found = [f"{probe['name']} {probe['auc']:.2f}" for probe in probes if probe["is_leak"]]
    if found:
        return ", ".join(found)
    largest = max(probes, key=lambda probe: probe["auc"], default=None)
    return "none" if largest is None else f"none (largest: {largest['name']} {largest['auc']:.2f})"


def _percent(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_ESCAPED.get(c, c) for c in cell) for cell in cells) + r" \\"
