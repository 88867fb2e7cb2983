"""`report.html`: one self-contained page on one run, built section by section from its summary and answers.

write_report(out / "report.html", summary, results, benchmark)

@section("longest", title="The longest answers")       # a custom section, after the built-in ones
def longest(report: Report) -> str | None: ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.item_scores import ItemScore, item_scores
from vlm_detect.benchmark.report_parts import card_maker
from vlm_detect.errors import first_line
from vlm_detect.pages.page import render, write_page
from vlm_detect.plugins import Registry
from vlm_detect.questions.kind import KINDS
from vlm_detect.records import Result

_FEW_GROUPS = 30


@dataclass(frozen=True)
class Report:
    """The input of a section: `summary.json`, every answer, and the benchmark."""

    summary: dict[str, Any]
    results: Sequence[Result]
    benchmark: Benchmark

    @cached_property
    def scored(self) -> list[ItemScore]:
        """The closed items as decided by log-probability; empty for recorded answers."""
        return item_scores(self._closed, "logprob")

    @cached_property
    def generated(self) -> list[ItemScore]:
        """The closed items as decided by free answers."""
        return item_scores(self._closed, "generate")

    @property
    def scores(self) -> list[ItemScore]:
        return self.scored or self.generated

    @cached_property
    def card(self) -> Callable[[ItemScore], dict[str, Any]]:
        """Make the arguments of the macro `cards` of `pieces.html.j2` for an item."""
        return card_maker(self.benchmark)

    @property
    def _closed(self) -> Sequence[Result]:
        """Open questions have their own metrics, and no right answer to show on a card."""
        return [result for result in self.results if not KINDS[result.kind].is_open] or self.results


@dataclass(frozen=True)
class Section:
    """`body` returns HTML as `markupsafe.Markup` (a plain string is escaped), or None for nothing to show."""

    title: str
    body: Callable[[Report], str | None]


SECTIONS: Registry[Section] = Registry("section", ["vlm_detect.benchmark.report_sections"])


def section(
    name: str, *, title: str = ""
) -> Callable[[Callable[[Report], str | None]], Callable[[Report], str | None]]:
    """Register a function as a section of the report; without a `title` the body contains its own."""

    def register(body: Callable[[Report], str | None]) -> Callable[[Report], str | None]:
        SECTIONS.add(name, Section(title, body), body)
        return body

    return register


def write_report(path: str | Path, summary: dict[str, Any], results: Sequence[Result], benchmark: Benchmark) -> None:
    """Write the page; images that cannot be opened (recorded answers) are omitted from the cards."""
    report = Report(summary, results, benchmark)
    shown = [_shown(name, report) for name in SECTIONS]
    html = render(
        "report.html.j2",
        title=f"{benchmark.name}: benchmark report",
        summary=summary,
        notes=notes_of(summary),
        sections=[(title, body) for title, body in shown if body],
    )
    write_page(path, html)


def _shown(name: str, report: Report) -> tuple[str, str | None]:
    """A section's title and body. A failing section of another package is replaced by its error, because the answers
    took hours."""
    try:
        found = SECTIONS[name]
        return found.title, found.body(report)
    except Exception as error:
        if name in SECTIONS.own:
            raise
        reason = f"section {name!r} of the report failed: {type(error).__name__}: {first_line(error)}"
        print(reason, file=sys.stderr)
        return name, reason


def notes_of(summary: dict[str, Any]) -> list[str]:
    """Caveats for the reader."""
    notes = [summary["note"]] if summary.get("note") else []
    if summary["groups"] < _FEW_GROUPS:
        notes.append(
            f"Only {summary['groups']} source photos: intervals over so few mean little, and the true score may be far "
            "off."
        )
    kinds = {kind: figures for kind, figures in (summary.get("by_kind") or {}).items() if figures.get("floors")}
    for kind, figures in (kinds or {"": summary}).items():
        best = max(figures["floors"].items(), key=lambda one: one[1], default=None)
        if best and figures["accuracy"] is not None and figures["accuracy"] <= best[1]:
            about = f" in {kind.replace('_', ' ')}" if kind else ""
            notes.append(
                f"The accuracy of {figures['accuracy']:.3f}{about} is not above the blind baseline "
                f"“{best[0].replace('_', ' ')}” of {best[1]:.3f}, which sees no image."
            )
    unparsed = (summary.get("generate") or {}).get("unparsed_rate") or 0
    if unparsed > 0.05:
        notes.append(f"{100 * unparsed:.0f} % of the free answers could not be parsed; each counts as wrong.")
    return notes
