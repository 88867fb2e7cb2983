"""A scan in shards: rows as parquet files in a folder, by workers of this machine, of a Slurm or of a Ray cluster.

    vlm-detect scan --model RUN photos/ --out verdicts --workers 4
    vlm-detect scan --model RUN 's3://bucket/tars/*.tar' --out verdicts --executor slurm --workers 16 --gpus 1

    OUT/items.parquet                  the images by their addresses: one row group a shard
    OUT/plan.json                      their number and digest, and the settings of the scan
    OUT/shards/00000/rows.parquet      one row an image, of the columns of `Row`; lists and objects are JSON
    OUT/run.json                       when all is done: counts, settings, versions

The executors are those of data generation. A finished shard is not read again; the same command does the rest. The
shard of a worker that died is done again, and its images are then decoded in a process of their own, so that an image
that kills its decoder costs its own row.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Features, Value

from vlm_detect.apps.judging import Batch, Explained, batches, decode_isolated, judge_batches, key_of
from vlm_detect.apps.operating_point import set_operating_point
from vlm_detect.apps.options import Judge
from vlm_detect.apps.scan_files import AS_JSON
from vlm_detect.apps.scan_options import ScanOptions
from vlm_detect.apps.scan_rows import COLUMNS, Row
from vlm_detect.config import file_sha256, write_run_json
from vlm_detect.data.item_list import read_group, unique, write_items
from vlm_detect.data.items import Item, list_items, read_items
from vlm_detect.data.sources import report_skipped, spelled
from vlm_detect.infer.detector import Detector, only_unchecked
from vlm_detect.infer.picture import decode_picture
from vlm_detect.jobs import shards
from vlm_detect.jobs.executors import check_executor, run_shards, threads_of
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, begin, full_disk_as_user_error, write_shard
from vlm_detect.locks import held
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.models.registry import check_reachable, is_full_size, resolve_id
from vlm_detect.models.run_checksums import checksums_of_run
from vlm_detect.printable import printable
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration

ITEMS = "items.parquet"
_TYPES = {"p_fake": "float64", "novelty_p": "float64", "max_fpr": "float64", "threshold": "float64"}
_TYPES |= {"calibrated": "bool", "reliable": "bool", "contradictions": "int64", "views": "int64"}
ROW_FEATURES = Features({name: Value(_TYPES.get(name, "string")) for name in COLUMNS})
# Files of a run that verdicts rest on, besides its weights and configurations.
_FITTED = ("calibration.json", "fusion.json", "head.safetensors", "measures.json")


@dataclass(frozen=True)
class ScanShard:
    """Judges the images of one shard; called in any process. `threads` are torch's, on a CPU; None for its default."""

    folder: Path
    judge: Judge
    options: ScanOptions
    threads: int | None = None

    def __call__(self, shard: int) -> None:
        detector = self.detector()
        with _begun(self.folder, shard) as was_killed:
            photos = read_items(read_group(self.folder / ITEMS, shard), self.options.image_column)
            given = (
                Batch(len(some), [(key_of(photo), photo) for photo in some])
                for some in batches(photos, self.options.batch_size)
            )
            explained = Explained(self.options.explain, self.options.only_confirmed)
            decode = decode_isolated if was_killed else decode_picture
            rows: list[dict[str, Any]] = []
            for size, judged in judge_batches(detector, given, explained, decode):
                rows += [_cells(one.row) for one in judged]
                shards.count(size)
            write_shard(self.folder, shard, rows, ROW_FEATURES, None)

    def detector(self) -> Detector:
        """That of this process: a worker judges many shards."""
        return _load(self.judge, self.options.views, self.options.threshold, self.options.max_fpr, self.threads)


def scan_in_shards(
    judge: Judge, options: ScanOptions, launch: Launch, task: type[ScanShard] = ScanShard
) -> Counter[str] | str:
    """Judge every image of `options.images` and write the rows to the folder `options.out`.

    Returns the count of each label, or the id of a cluster job where the rest of the work was only queued. `task` is
    what a worker does.

    Raises:
        UserError: an image source is missing or cannot be reached, the model or the cluster cannot, or the folder is of
            another scan. All but the last word on a model's weights is found before a worker starts.
    """
    assert options.out is not None
    out = Path(options.out).absolute()
    check_executor(launch)
    resolved = resolve_id(judge.model)
    check_reachable(resolved)
    judge = replace(judge, model=resolved.name)
    check_run(judge, options)
    with held(out):
        plan = make_plan(judge, options, out)
        launch = launch.with_models(is_full_size(judge.model))
        workers = min(launch.workers, len(shards.missing(out, plan)))
        if workers:
            by = f"{workers} worker{'s' * (workers > 1)} ({launch.executor})"
            print(f"{plan.items} images in {plan.shards} shards, by {by}, model {judge.model}", file=sys.stderr)
        work = task(out, judge, options, threads_of(launch))
        if job := run_shards(work, plan, out, launch):
            return job
        labels = count_labels(out, plan)
        write_run_json(
            out,
            {"judge": asdict(judge), "scan": asdict(options), "launch": asdict(launch)},
            status="finished",
            images=plan.items,
            labels=dict(labels),
            settings=plan.settings,
        )
    return labels


def check_run(judge: Judge, options: ScanOptions) -> Calibration:
    """The calibration at the operating point; `UserError` where the run cannot give it, or has nothing to check by."""
    run = Path(judge.adapter or judge.model)
    if options.only_confirmed and MeasureCalibration.load(run) is None:
        raise only_unchecked(str(run))
    calibration = Calibration.load(run)
    if options.threshold is not None:
        return calibration.at_threshold(options.threshold)
    return calibration if options.max_fpr is None else calibration.guaranteeing(options.max_fpr)


def make_plan(judge: Judge, options: ScanOptions, out: Path) -> Plan:
    """List the images in `out`, or check that they and the settings are those of the scan that was begun there."""
    partial = out / f".{ITEMS}.partial"
    first, *others = options.images
    more = f" and {len(others)} more" if others else ""
    print(printable(f"listing {spelled(first)}{more} ..."), file=sys.stderr, flush=True)
    with full_disk_as_user_error(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            with progress(_all_items(options), "list", unit="img") as bar:
                n, digest = write_items(partial, bar, options.shard_size)
            plan = Plan("scan", n, options.shard_size, digest, _settings(judge, options))
            begin(out, plan)
            partial.replace(out / ITEMS)
        finally:
            partial.unlink(missing_ok=True)
            if not any(out.iterdir()):
                out.rmdir()
    return plan


def count_labels(out: Path, plan: Plan) -> Counter[str]:
    """The images of each label in a finished scan, and the contradictory ones."""
    labels = Counter[str]()
    for shard in range(plan.shards):
        for row in shards.read_rows(out, shard, ["label", "contradictions"]):
            labels[row["label"]] += 1
            labels["contradictory"] += bool(row["contradictions"])
    return labels


def _all_items(options: ScanOptions) -> Iterator[Item]:
    """As a scan into one file has them: an image that is named twice is judged once."""
    named_twice = len(options.images) > 1 or any(spec.lower().endswith(".txt") for spec in options.images)
    found = (item for spec in options.images for item in _items(spec, options.image_column))
    return unique(found) if named_twice else found


def _items(spec: str, image_column: str) -> Iterator[Item]:
    skipped = Counter[str]()
    yield from list_items(spec, skipped, image_column)
    report_skipped(spec, skipped)


def _settings(judge: Judge, options: ScanOptions) -> dict[str, Any]:
    """All that a row rests on, besides its image."""
    files: dict[str, str] = {}
    for run in map(Path, filter(None, (judge.adapter or judge.model, judge.expert))):
        found = checksums_of_run(run) if run.is_dir() else {}
        found |= {name: file_sha256(run / name) for name in _FITTED if (run / name).is_file()}
        files |= {f"{run.name}/{name}": digest for name, digest in found.items()}
    names = ("views", "threshold", "max_fpr", "explain", "only_confirmed", "image_column")
    return asdict(judge) | {name: getattr(options, name) for name in names} | {"files": files}


@contextmanager
def _begun(folder: Path, shard: int) -> Iterator[bool]:
    """Whether an earlier attempt at this shard ended with its process: a mark stands while one is made."""
    mark = folder / "shards" / f".{shard:05d}.begun"
    was_killed = mark.exists()
    with full_disk_as_user_error(folder):
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    try:
        yield was_killed
    finally:
        mark.unlink(missing_ok=True)


@cache
def _load(judge: Judge, views: int, threshold: float | None, max_fpr: float | None, threads: int | None) -> Detector:
    if threads is not None:
        torch.set_num_threads(threads)
    detector = Detector(judge.model, adapter=judge.adapter, expert=judge.expert, views=views)
    set_operating_point(detector, threshold, max_fpr)
    return detector


def _cells(row: Row) -> dict[str, Any]:
    cells = asdict(row)
    for name in AS_JSON:
        cells[name] = None if cells[name] is None else json.dumps(cells[name], ensure_ascii=False)
    return cells
