"""How a model's verdicts hold when images are compressed, scaled, blurred or cropped on their way.

    accelerate launch eval/robustness.py --model runs/moondream_lora --benchmark data/pairs
    python eval/robustness.py --model nano --benchmark data/vqa/benchmark.json --conditions tiers --limit 200

The tiers clean, web, hard and thumb have fixed meanings (`vlm_detect/benchmark/perturb.py`); the curves change one
thing in steps. Each is applied to both classes, and to each class alone. Only verdicts are asked (yes/no, real or
fake), by log-probability in both polarities. Out come a folder of answers a condition, robustness.json and
report.html; started again, the same command goes on with what is missing.
"""

from __future__ import annotations

import vlm_detect  # isort: skip  # noqa: F401 (before torch: see there)
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.perturb import CURVES, TIERS, Condition
from vlm_detect.benchmark.respondents import respondent_for
from vlm_detect.benchmark.robustness import SIDES, Answered, curve_figures, robustness
from vlm_detect.benchmark.run import answer_all, check_same_run, default_out
from vlm_detect.benchmark.score import item_image
from vlm_detect.benchmark.summary import item_scores
from vlm_detect.config import parse_config, write_json, write_run_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import best_device
from vlm_detect.models.registry import resolve_id
from vlm_detect.pages.page import render, write_page
from vlm_detect.questions.kind import KINDS, is_fake
from vlm_detect.records import Item


@dataclass(frozen=True)
class RobustnessConfig:
    benchmark: str = field(metadata={"help": "A JSON or JSONL file of items, or a dataset folder."})
    model: str = field(default="auto", metadata={"help": "A run directory, a Hub id, a local folder, nano or auto."})
    adapter: str | None = field(default=None, metadata={"help": "A run directory whose LoRA is put on --model."})
    out: str | None = field(default=None, metadata={"help": "Folder for the results; default <run>/eval/robustness."})
    split: str = field(default="test", metadata={"help": "Which split of a dataset folder is asked about."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad items out and count them."})
    limit: int | None = field(default=None, metadata={"help": "Only the first so many verdict items."})
    conditions: Literal["tiers", "curves", "all"] = field(default="all", metadata={"help": "Which conditions."})
    batch_size: int = field(default=8, metadata={"help": "Images encoded together."})


def main(argv: list[str]) -> int:
    (config,) = parse_config([RobustnessConfig], argv, doc=__doc__)
    if config.limit is not None and config.limit < 1:
        print(f"error: --limit {config.limit}: at least 1 item is needed", file=sys.stderr)
        return 2
    loaded = load_benchmark(config.benchmark, split=config.split, skip_bad=config.skip_bad)
    items = [item for item in loaded.items if KINDS[item.kind].is_verdict and is_fake(item) is not None]
    if not items:
        raise UserError(f"{config.benchmark}: has no item that asks for a verdict (yes/no, real or fake)")
    benchmark = replace(loaded, items=items[: config.limit])
    if config.model == "auto":
        config = replace(config, model=resolve_id(config.model).name)
    out = Path(config.out) if config.out else default_out(config.model, None) / "robustness"
    state = PartialState(cpu=best_device().type == "cpu")
    respondent = respondent_for(config.model, adapter=config.adapter, generate=False, batch_size=config.batch_size)
    respondent = replace(respondent, start=functools.cache(respondent.start))  # loaded once for all conditions
    identity = {**respondent.identity, "benchmark_sha256": benchmark.sha256}
    check_same_run(out, identity, write=state.is_main_process)
    answered = []
    for condition in chosen(config.conditions):
        if state.is_main_process:
            print(f"{condition.name}: {len(benchmark.items)} items", file=sys.stderr)
        results = answer_all(
            benchmark,
            out / "conditions" / condition.name,
            state,
            respondent,
            image_of=changed(benchmark, condition),
        )
        answered.append(Answered(condition, {score.id: score for score in item_scores(results, "logprob")}))
    if state.is_main_process:
        finish(config, benchmark, answered, out, identity)
    state.wait_for_everyone()
    return 0


def chosen(which: str) -> list[Condition]:
    """The clean tier is always asked: everything else is measured against it."""
    return [TIERS[0], *(TIERS[1:] if which != "curves" else ()), *(CURVES if which != "tiers" else ())]


def changed(benchmark: Benchmark, condition: Condition) -> Callable[[Item], Image.Image]:
    # By the name alone: from another folder the same noise comes out.
    return lambda item: condition.apply(item_image(benchmark, item), seed=Path(item.images[0]).name)


def finish(config: RobustnessConfig, benchmark: Benchmark, answered: list[Answered], out: Path, identity: dict) -> None:
    found = robustness(answered)
    write_json(out / "robustness.json", {"model": config.model, "items": len(benchmark.items), "conditions": found})
    page = render(
        "robustness.html.j2",
        title=f"{benchmark.name}: robustness",
        n=len(benchmark.items),
        model=config.model,
        conditions=found,
        charts=curve_figures(found),
    )
    write_page(out / "report.html", page)
    write_run_json(out, config, **identity, items=len(benchmark.items), skipped=benchmark.skipped)
    print(f"{'':<16}{'AUROC':>8}{'balanced':>10}{'photos only':>13}{'generated only':>16}")
    for name, row in found.items():
        cells = [row["both"]["auroc"], *(row[side]["balanced_accuracy"] for side in SIDES)]
        shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        print(f"{name:<16}{shown[0]:>8}{shown[1]:>10}{shown[2]:>13}{shown[3]:>16}")
    print(out / "report.html")


if __name__ == "__main__":
    run_main(main)
