"""Verdicts under each condition, on both classes and on each alone: the implementation of `vlm-detect robustness`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from matplotlib.figure import Figure
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.flips import attack_lines, attack_tables, false_alarms, flips
from vlm_detect.benchmark.item_scores import ItemScore, item_scores
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.options import RobustnessOptions
from vlm_detect.benchmark.perturb import CURVES, TIERS, UNITS, Condition
from vlm_detect.benchmark.respondents import respondent_for
from vlm_detect.benchmark.run import answer_all, check_same_run, default_out, without_refused
from vlm_detect.benchmark.score import item_image
from vlm_detect.benchmark.summary import figures_of, rounded, witness_figures
from vlm_detect.config import write_json, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.locks import held
from vlm_detect.machine import best_device
from vlm_detect.models.registry import resolve_id
from vlm_detect.pages.page import PALETTE, Picture, render, svg, write_page
from vlm_detect.questions.kind import KINDS, is_fake
from vlm_detect.records import Item, Result
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.intervals import RESAMPLES

SIDES = ("both", "real_only", "generated_only")


@dataclass(frozen=True)
class Answered:
    """What a model says of every item under one condition, and by id which of its variants an image got."""

    condition: Condition
    scores: Mapping[str, ItemScore]
    variants: Mapping[str, str] = field(default_factory=dict)


def robustness(
    answered: Sequence[Answered], *, calibration: Calibration | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Figures by condition; the first condition is the clean one.

    `flips` are verdicts that a condition turns over, by the threshold of `calibration`; a condition of photos alone has
    its `false_alarms`, next to those on the same photos clean.

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
        if one is not answered[0]:
            found[one.condition.name] |= _turned(clean, one, calibration, resamples)
        if alone := witness_figures(sides["both"], resamples):
            found[one.condition.name]["witnesses"] = alone
    return rounded(found)


def _turned(
    clean: Mapping[str, ItemScore], one: Answered, calibration: Calibration | None, resamples: int
) -> dict[str, Any]:
    photos_only = one.condition.photos_only
    changed = {id_: score for id_, score in one.scores.items() if not (photos_only and score.is_fake)}
    found: dict[str, Any] = {"flips": flips(clean, changed, calibration, one.variants, resamples=resamples)}
    if photos_only:
        found["false_alarms"] = false_alarms(one.scores, calibration, one.variants, resamples=resamples)
        found["false_alarms"]["clean"] = false_alarms(clean, calibration, {}, resamples=resamples)
    return found


def curve_figures(found: Mapping[str, Any]) -> list[Picture]:
    """For each family the AUROC on both classes, and the share of each class that is still classified correctly."""
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
            "generated detected (TPR)": [row["both"]["tpr"] for row in rows],
            "photos accepted (TNR)": [row["both"]["tnr"] for row in rows],
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
        described = ", ".join(
            f"{level:g}: {_shown(row['both']['auroc'])}" for level, row in zip(levels, rows, strict=True)
        )
        pictures.append(svg(figure, f"AUROC by {unit}: {described}", family.capitalize()))
    return pictures


def _mixed(changed: Mapping[str, ItemScore], clean: Mapping[str, ItemScore], *, changed_fake: bool) -> list[ItemScore]:
    return [changed[id_] if score.is_fake == changed_fake else score for id_, score in clean.items()]


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def answer_conditions(options: RobustnessOptions) -> None:
    """Write answers under every condition, their metrics and a page into `--out`."""
    loaded = load_benchmark(options.benchmark, split=options.split, skip_bad=options.skip_bad)
    items = [item for item in loaded.items if KINDS[item.kind].is_verdict and is_fake(item) is not None]
    if not items:
        raise UserError(f"{options.benchmark}: no item asks for a verdict (yes/no, real or fake)")
    benchmark = replace(loaded, items=items[: options.limit])
    if options.model == "auto":
        options = replace(options, model=resolve_id(options.model).name)
    out = Path(options.out) if options.out else default_out(options.model, None) / "robustness"
    state = PartialState(cpu=best_device().type == "cpu")
    with held(out, when=state.is_main_process):
        _answer(options, benchmark, out, state)


def _answer(options: RobustnessOptions, benchmark: Benchmark, out: Path, state: PartialState) -> None:
    respondent = respondent_for(
        options.model, adapter=options.adapter, generate=False, batch_size=options.batch_size, expert=options.expert
    )
    respondent = replace(respondent, start=functools.cache(respondent.start))  # loaded once for all conditions
    identity = {**respondent.identity, "benchmark_sha256": benchmark.sha256}
    check_same_run(out, identity, write=state.is_main_process)
    answered: list[Answered] = []
    refused: list[Result] = []
    for condition in chosen(options.conditions):
        asked = benchmark
        if condition.photos_only:
            asked = replace(benchmark, items=[item for item in benchmark.items if not is_fake(item)])
        if state.is_main_process:
            print(f"{condition.name}: {len(asked.items)} items", file=sys.stderr)
        results = answer_all(
            asked,
            out / "conditions" / condition.name,
            state,
            respondent,
            image_of=changed(benchmark, condition),
        )
        refused += [result for result in results if result.refused]
        scores = {score.id: score for score in item_scores(results, "logprob")}
        variants = {item.id: condition.variant(seed_of(item)) for item in asked.items} if condition.variants else {}
        if condition.photos_only:  # generated images are those of the clean tier
            scores = {id_: scores.get(id_, score) for id_, score in answered[0].scores.items()}
        answered.append(Answered(condition, scores, variants))
    if state.is_main_process:
        # What is refused under one condition is left out of all: they are compared item by item.
        benchmark, _ = without_refused(benchmark, refused)
        kept = {item.id for item in benchmark.items}
        answered = [
            replace(one, scores={id_: score for id_, score in one.scores.items() if id_ in kept}) for one in answered
        ]
        finish(options, benchmark, answered, out, identity, respondent.calibration)
    state.wait_for_everyone()


def chosen(which: Sequence[str]) -> list[Condition]:
    """The conditions of these names (all, tiers, curves, or one condition), preceded by the clean tier as reference."""
    wanted = set(which)
    sets = (("tiers", TIERS[1:]), ("curves", CURVES))
    return [TIERS[0], *(one for name, every in sets for one in every if wanted & {"all", name, one.name})]


def changed(benchmark: Benchmark, condition: Condition) -> Callable[[Item], Image.Image]:
    return lambda item: condition.apply(item_image(benchmark, item), seed=seed_of(item))


def seed_of(item: Item) -> str:
    """The image's name alone: from another folder the same noise comes out."""
    return Path(item.images[0]).name


def finish(
    options: RobustnessOptions,
    benchmark: Benchmark,
    answered: list[Answered],
    out: Path,
    identity: dict,
    calibration: Calibration | None = None,
) -> None:
    found = robustness(answered, calibration=calibration)
    write_json(out / "robustness.json", {"model": options.model, "items": len(benchmark.items), "conditions": found})
    page = render(
        "robustness.html.j2",
        title=f"{benchmark.name}: robustness",
        n=len(benchmark.items),
        model=options.model,
        conditions=found,
        attacks=attack_tables(found),
        charts=curve_figures(found),
    )
    write_page(out / "report.html", page)
    write_run_json(out, options, **identity, items=len(benchmark.items), skipped=benchmark.skipped)
    print(f"{'':<16}{'AUROC':>8}{'balanced':>10}{'photos only':>13}{'generated only':>16}")
    for name, row in found.items():
        cells = [row["both"]["auroc"], *(row[side]["balanced_accuracy"] for side in SIDES)]
        shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        print(f"{name:<16}{shown[0]:>8}{shown[1]:>10}{shown[2]:>13}{shown[3]:>16}")
        for witness, alone in row.get("witnesses", {}).items():
            shown = ["-" if alone[key] is None else f"{alone[key]:.3f}" for key in ("auroc", "balanced_accuracy")]
            print(f"  {witness.replace('_', ' '):<14}{shown[0]:>8}{shown[1]:>10}")
    for line in attack_lines(found):
        print(line)
    print(out / "report.html")
