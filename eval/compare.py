"""Compare runs, and score files of any other detector, over the same items.

    python eval/compare.py runs/base/eval runs/moondream_lora/eval --out runs/compared
    python eval/compare.py runs/moondream_lora/eval other_detector.csv --benchmark data/vqa/benchmark.json

A score file is a CSV with the columns image (its file name, with as many of its folders as tell it apart) and p_fake
(0 to 1). Which items those are says --benchmark; without it, the CSV needs a column `label` (real or generated) and is
compared with other CSVs only.
Out come compare.json and report.html: every figure with its interval, McNemar's test and the paired bootstrap of each
run against the first, and the curves of eval/robustness.py where they lie beside a run's results.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlm_detect.benchmark.compare import Run, compare, load_run
from vlm_detect.benchmark.compare_report import write_compare_report
from vlm_detect.benchmark.floors import chief_floors
from vlm_detect.benchmark.items import column_of, load_benchmark
from vlm_detect.config import parse_config, write_json, write_run_json
from vlm_detect.errors import UserError, run_main

SHOWN = ("accuracy", "balanced_accuracy", "auroc", "ece")


@dataclass(frozen=True)
class CompareConfig:
    runs: list[str] = field(metadata={"positional": True, "help": "Result folders and CSV score files."})
    out: str = field(default="runs/compared", metadata={"help": "Folder for compare.json and report.html."})
    benchmark: str | None = field(default=None, metadata={"help": "What the items are: for CSVs, --by and the floors."})
    split: str = field(default="test", metadata={"help": "Of --benchmark, where that is a dataset folder."})
    by: list[str] = field(default_factory=list, metadata={"help": "Metadata columns of --benchmark to slice by."})

    def __post_init__(self) -> None:
        if self.by and not self.benchmark:
            raise UserError("--by needs --benchmark, which says what the items' columns are")


def main(argv: list[str]) -> int:
    (config,) = parse_config([CompareConfig], argv, doc=__doc__)
    benchmark = load_benchmark(config.benchmark, split=config.split) if config.benchmark else None
    runs = distinct([load_run(Path(path), benchmark) for path in config.runs], config.runs)
    columns = {column: column_of(benchmark, column, needed=True) for column in config.by} if benchmark else {}
    comparison = compare(runs, by=columns)
    out = Path(config.out)
    floors = chief_floors(benchmark.items) if benchmark else {}
    comparison["floors"] = floors
    write_json(out / "compare.json", comparison)
    write_compare_report(out / "report.html", comparison, runs, floors=floors, columns=config.by, benchmark=benchmark)
    write_run_json(out, config)
    width = max(len(run.name) for run in runs) + 2
    print(" " * width + "".join(f"{name:>26}" for name in SHOWN))
    for run in runs:
        print(f"{run.name:<{width}}" + "".join(f"{cell(comparison['runs'][run.name], name):>26}" for name in SHOWN))
    print(out / "report.html")
    return 0


def cell(figures: dict, name: str) -> str:
    interval = figures["ci95"].get(name)
    point = figures.get(name)
    if point is None:
        return "-"
    return f"{point:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{point:.3f}"


def distinct(runs: list[Run], paths: list[str]) -> list[Run]:
    """Runs of one name are called by as much of their paths as tells all apart."""
    parts = [Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{' '.join(paths)}: give each only once")
    length = next(n for n in itertools.count(1) if len({found[-n:] for found in parts}) == len(parts))
    counts = Counter(run.name for run in runs)
    return [
        replace(run, name="/".join(found[-length:])) if counts[run.name] > 1 else run
        for run, found in zip(runs, parts, strict=True)
    ]


if __name__ == "__main__":
    run_main(main)
