"""Sharded work: a plan determined by the inputs, shards written atomically; `executors.py` runs them.

    FOLDER/plan.json                   settings and inputs; a rerun with another plan is an error
    FOLDER/shards/00000/rows.parquet   a shard's rows
    FOLDER/shards/00000/rejects.parquet
    FOLDER/logs/                       Slurm scripts and their output

An existing shard is complete and is never rewritten, so a killed run resumes where it stopped.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from vlm_detect.columns import REJECT_FEATURES
from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.records import Reject

Task = Callable[[int], None]
_OFF: tuple[Any, ...] = (None, False, "", "none", 0, [], {})


@dataclass(frozen=True)
class Plan:
    """A step: its settings, and the number and the fingerprint of its items."""

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

    def length(self, shard: int) -> int:
        return len(range(*self.span(shard)))


def begin(folder: Path, plan: Plan) -> None:
    """Write the plan, or check that the existing one is equal."""
    if is_begun(folder):
        if found := changes(folder, plan):
            raise UserError(
                f"{folder} was started with other settings ({'; '.join(found)}); give another --out or remove it"
            )
        return
    try:
        write_json(folder / "plan.json", _as_json(plan))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error


def is_begun(folder: Path) -> bool:
    """Whether a plan is in `folder`."""
    return (folder / "plan.json").exists()


def changes(folder: Path, plan: Plan) -> list[str]:
    """Sentences on the differences of `plan` from the one in `folder`."""
    return differences(asdict(read_plan(folder)), _as_json(plan))


def _as_json(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=str))
    return found


def read_plan(folder: Path) -> Plan:
    """The plan of a step's folder; raises `UserError` for other folders."""
    try:
        return Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: not the output of a sharded step (no valid plan.json)") from error


def check_finished(folder: Path, *steps: str) -> Plan:
    """The plan of one of `steps`; raises `UserError` for other steps or missing shards."""
    plan = read_plan(folder)
    if plan.step not in steps:
        raise UserError(
            f"{folder}: the output of the {plan.step} step, but the output of the {steps[0]} step is needed"
        )
    done = sum(is_done(folder, shard) for shard in range(plan.shards))
    if done < plan.shards:
        raise UserError(
            f"{folder}: {done} of {plan.shards} shards are done; run the {plan.step} step again to finish it"
        )
    return plan


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences on the differences between two nested settings.

    A setting missing in `old`, which an earlier version wrote, was off.
    """
    found: list[str] = []
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after)
        elif before != after and (name in old or after not in _OFF):
            found.append("the list of images has changed" if name == "inputs" else f"{name} was {before}, is {after}")
    return list(dict.fromkeys(found))


def is_done(folder: Path, shard: int) -> bool:
    return _shard_folder(folder, shard).is_dir()


def write_shard(
    folder: Path, shard: int, rows: Sequence[dict[str, Any]], features: Features, rejects: Sequence[Reject] | None
) -> None:
    """Write a shard, without a file of rejects where they are None.

    One that is there is kept: its worker may have died between its last word and its end.
    """
    if is_done(folder, shard):
        return
    with full_disk_as_user_error(folder), new_shard(folder, shard) as partial:
        write_rows(partial / "rows.parquet", rows, features)
        if rejects is not None:
            write_rows(partial / "rejects.parquet", [asdict(reject) for reject in rejects], REJECT_FEATURES)


@contextmanager
def new_shard(folder: Path, shard: int) -> Iterator[Path]:
    """A folder for the files of a missing shard, under a temporary name until the end."""
    final = _shard_folder(folder, shard)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # remains of a killed run
    partial.mkdir(parents=True)
    yield partial
    partial.rename(final)


def write_rows(path: Path, rows: Sequence[dict[str, Any]], features: Features) -> None:
    """Write rows to a parquet file that `datasets` reads with these features; images are {bytes, path}."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=features.arrow_schema), path)


def read_rows(folder: Path, shard: int, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a shard, a few at a time in memory."""
    with pq.ParquetFile(_shard_folder(folder, shard) / "rows.parquet") as file:
        for batch in file.iter_batches(batch_size=16, columns=columns):
            yield from batch.to_pylist()


def read_rejects(folder: Path, shard: int) -> list[Reject]:
    rows = pq.read_table(_shard_folder(folder, shard) / "rejects.parquet").to_pylist()
    return [Reject(**row) for row in rows]


def sum_up(rejects: Sequence[Reject]) -> str:
    """Why all items of a run were rejected: "(3 not_an_image, 1 too_small); the first is a.png: no image"."""
    counts = Counter(reject.reason for reject in rejects).most_common()
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    return f"({reasons}); the first is {rejects[0].id}: {rejects[0].detail}"


def missing(folder: Path, plan: Plan) -> list[int]:
    return [shard for shard in range(plan.shards) if not is_done(folder, shard)]


_count: Callable[[int], Any] | None = None  # in each worker process: the progress callback


def count_with(count: Callable[[int], Any] | None) -> None:
    """Make `counted` report to `count` in this process."""
    global _count
    _count = count


def count(images: int) -> None:
    """Report so many images of a shard as done."""
    if _count is not None:
        _count(images)


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """Iterate over `items`, counting each as done when the next one is requested."""
    for item in items:
        yield item
        count(1)


@contextmanager
def full_disk_as_user_error(folder: Path) -> Iterator[None]:
    """Report a full disk or missing write permission in one line; finished shards are kept."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{folder}: no space left on this disk; finished shards are kept: free some and run the same command again"
        ) from error


def _shard_folder(folder: Path, shard: int) -> Path:
    return folder / "shards" / f"{shard:05d}"
