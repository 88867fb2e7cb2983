"""A dataset with measured reasons in a folder, and explanations of its images by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from tests.train.reasoned import reasoned_edits, reasoned_images
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explained_items import with_explanations
from vlm_detect.benchmark.explanations import Explained, read_explanations
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import generated_result
from vlm_detect.questions.kind import prompts_of
from vlm_detect.records import Item


def write_split(folder: Path, rows: Dataset, split: str = "test") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_reasoned(folder: Path) -> Path:
    """Photos and generated images, whose measures.json was fitted on these very images."""
    rows, calibration = reasoned_images()
    calibration.save(write_split(folder, rows))
    return folder


def write_edited(folder: Path) -> Path:
    return write_split(folder, reasoned_edits())


def asked_for_reasons(folder: Path, n: int = 80) -> Benchmark:
    return with_explanations(load_benchmark(folder), n)


def open_items(benchmark: Benchmark) -> list[Item]:
    return [item for item in benchmark.items if item.kind == "open"]


def explained(benchmark: Benchmark, say: Callable[[Item], str], items: Sequence[Item] = ()) -> list[Explained]:
    """What `say` answers to each open item, read and checked."""
    items = items or open_items(benchmark)
    results = [generated_result(prompts_of(item)[0], say(item)) for item in items]
    assert benchmark.dataset is not None
    calibration = benchmark.dataset.calibration
    return read_explanations(items, results, dataset=benchmark.dataset, calibration=calibration)
