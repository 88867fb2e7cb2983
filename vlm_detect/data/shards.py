"""Work in shards: a list fixed by the inputs, each shard written by one atomic rename, datatrove to run them.

    FOLDER/plan.json                   what is done to what; a rerun with another plan is refused
    FOLDER/shards/00000/rows.parquet   a shard's rows
    FOLDER/shards/00000/rejects.parquet
    FOLDER/logs/                       datatrove's logs and completion markers

A shard that exists is complete and is never written again, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features
from tqdm import tqdm

from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.records import REJECT_FEATURES, Reject


@dataclass(frozen=True)
class Plan:
    """What a step does: its settings, and the number and the fingerprint of the items it does it to."""

    step: str
    items: int
    shard_size: int
    inputs: str
    settings: dict[str, Any]

    @property
    def shards(self) -> int:
        return math.ceil(self.items / self.shard_size)

    def span(self, shard: int) -> tuple[int, int]:
        """(start, stop) of a shard's items."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.items)


def begin(folder: Path, plan: Plan) -> None:
    """Write the plan, or check that the one already there is the same."""
    path = folder / "plan.json"
    wanted = json.loads(json.dumps(asdict(plan), default=str))
    if path.exists():
        found = read_plan(folder)
        if changes := differences(asdict(found), wanted):
            raise UserError(f"{folder} was begun otherwise ({'; '.join(changes)}); give another --out or remove it")
        return
    write_json(path, wanted)


def read_plan(folder: Path) -> Plan:
    """The plan of a step's folder, or `UserError` where `folder` is none."""
    try:
        return Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: not the output of a data generation step (no valid plan.json in it)") from error


def check_finished(folder: Path) -> Plan:
    """The plan of a step whose shards are all there; `UserError` where some are not."""
    plan = read_plan(folder)
    done = sum(is_done(folder, shard) for shard in range(plan.shards))
    if done < plan.shards:
        raise UserError(
            f"{folder}: {done} of {plan.shards} shards are done; run the {plan.step} step again to finish it"
        )
    return plan


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences on what differs between two nested settings."""
    found = []
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after)
        elif before != after:
            found.append(f"{name} was {before}, is {after}")
    return found


def is_done(folder: Path, shard: int) -> bool:
    return _shard_folder(folder, shard).is_dir()


def write_shard(
    folder: Path, shard: int, rows: Sequence[dict[str, Any]], features: Features, rejects: Sequence[Reject]
) -> None:
    """Write a shard beside its place, then rename it there."""
    final = _shard_folder(folder, shard)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    write_rows(partial / "rows.parquet", rows, features)
    write_rows(partial / "rejects.parquet", [asdict(reject) for reject in rejects], REJECT_FEATURES)
    partial.rename(final)


def write_rows(path: Path, rows: Sequence[dict[str, Any]], features: Features) -> None:
    """Rows to a parquet file that `datasets` reads with these features; images are given as {bytes, path}."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=features.arrow_schema), path)


def read_rows(folder: Path, shard: int, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a shard, a few at a time in memory."""
    with pq.ParquetFile(_shard_folder(folder, shard) / "rows.parquet") as file:
        for batch in file.iter_batches(batch_size=16, columns=columns):
            yield from batch.to_pylist()


def read_rejects(folder: Path, shard: int) -> list[Reject]:
    rows = pq.read_table(_shard_folder(folder, shard) / "rejects.parquet").to_pylist()
    return [Reject(**row) for row in rows]


def run_shards(task: Callable[[int], None], plan: Plan, folder: Path, *, workers: int = 1) -> None:
    """Call `task(shard)` for each shard that is not there yet, in `workers` processes.

    `task` is pickled and run in another process where `workers` > 1: it holds settings and loads its models itself.
    """
    # datatrove is an extra; nothing but data generation needs it
    import loguru
    from datatrove.executor import LocalPipelineExecutor

    class Executor(LocalPipelineExecutor):
        def _launch_run_for_rank(self, rank: int, *args: Any, **kwargs: Any) -> Any:
            loguru.logger.disable("datatrove")  # the progress bars tell what its log would, in one line
            if workers > 1:
                _take_own_gpu()
            return super()._launch_run_for_rank(rank, *args, **kwargs)

    def step(_data: Any, rank: int, _world_size: int) -> None:
        if not is_done(folder, rank):
            task(rank)

    missing = [shard for shard in range(plan.shards) if not is_done(folder, shard)]
    if not missing:
        return
    loguru.logger.disable("datatrove")
    Executor(
        pipeline=[step],
        tasks=plan.shards,
        workers=max(1, min(workers, len(missing))),
        logging_dir=str(folder / "logs"),
        skip_completed=False,  # the shard itself is the marker: a removed shard is made again
    ).run()


def _take_own_gpu() -> None:
    """Give this worker process a GPU of its own, as far as there are enough; it keeps it, and the models on it."""
    import multiprocess  # datatrove's pools are of this package, not of the standard library

    if torch.cuda.is_available():
        worker = multiprocess.current_process()._identity[0] - 1  # 0, 1, ... within the pool
        torch.cuda.set_device(worker % torch.cuda.device_count())


def progress(items: Iterable[Any], plan: Plan, shard: int, unit: str = "img") -> Iterator[Any]:
    """`items` behind a bar that counts through the whole plan; silent where stderr is no terminal."""
    start, _ = plan.span(shard)
    yield from tqdm(items, desc=plan.step, unit=unit, total=plan.items, initial=start, disable=None, leave=False)


def _shard_folder(folder: Path, shard: int) -> Path:
    return folder / "shards" / f"{shard:05d}"
