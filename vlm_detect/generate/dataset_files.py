"""The files of a dataset folder: parquet by split with the Hub's file names, written atomically.

Used for pair and image datasets. Each is audited before it is published under its name.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from vlm_detect.columns import REJECT_FEATURES
from vlm_detect.config import file_sha256, read_run_json, write_run_json
from vlm_detect.data.audit import write_audit
from vlm_detect.data.splits import SPLITS
from vlm_detect.errors import UserError
from vlm_detect.jobs.shards import differences, full_disk_as_user_error, write_rows
from vlm_detect.records import Reject

_GROUP_BYTES = 16 * 1024**2  # of a parquet row group: the unit that a reader holds in memory
_GROUP_ROWS = 1024


@dataclass(frozen=True)
class Packed:
    """The result: rows and groups by split, rejects by reason."""

    rows: dict[str, int]
    unit: str  # pairs or images
    groups: dict[str, int]
    rejects: dict[str, int]

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count} of {self.groups[split]} groups" for split, count in self.rows.items())
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.rejects.items())
        return f"{sum(self.rows.values())} {self.unit} ({splits}); rejected: {left_out or 'none'}"


class SplitWriter:
    """Parquet files of each split, in row groups small enough to stream."""

    def __init__(self, folder: Path, features: Features, rows_per_file: int) -> None:
        self._folder, self._schema, self._rows_per_file = folder, features.arrow_schema, rows_per_file
        self._images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self._bytes: dict[str, int] = {}
        self._files: dict[str, list[tuple[Path, int]]] = {}
        self._open: dict[str, pq.ParquetWriter] = {}
        self.rows: Counter[str] = Counter()  # by split
        self.groups: dict[str, set[str]] = {}

    def write(self, split: str, row: dict[str, Any]) -> None:
        self.rows[split] += 1
        self.groups.setdefault(split, set()).add(row["group"])
        pending = self._pending.setdefault(split, [])
        pending.append(row)
        self._bytes[split] = self._bytes.get(split, 0) + sum(len(row[name]["bytes"]) for name in self._images)
        written = self._files[split][-1][1] if split in self._open else 0
        is_full = self._bytes[split] >= _GROUP_BYTES or len(pending) >= _GROUP_ROWS
        if is_full or written + len(pending) >= self._rows_per_file:
            self._flush(split)

    def _flush(self, split: str) -> None:
        rows = self._pending.pop(split, [])
        self._bytes[split] = 0
        if not rows:
            return
        files = self._files.setdefault(split, [])
        if split not in self._open:
            path = self._folder / f"{split}-{len(files):05d}.parquet"
            self._open[split] = pq.ParquetWriter(path, self._schema)
            files.append((path, 0))
        self._open[split].write_table(pa.Table.from_pylist(rows, schema=self._schema))
        path, written = files[-1]
        files[-1] = (path, written + len(rows))
        if written + len(rows) >= self._rows_per_file:
            self._open.pop(split).close()

    def close(self) -> dict[str, str]:
        """Finish every file and give it its final name, which includes the number of files; name -> SHA-256."""
        for split in list(self._pending):
            self._flush(split)
        for writer in self._open.values():
            writer.close()
        digests = {}
        for files in self._files.values():
            for path, _ in files:
                final = path.with_name(f"{path.stem}-of-{len(files):05d}.parquet")
                path.rename(final)
                digests[f"data/{final.name}"] = file_sha256(final)
        return digests


def finish_folder(
    folder: Path,
    writer: SplitWriter,
    unit: str,
    rejects: Sequence[Reject],
    settings: dict[str, Any],
    card: Callable[[Packed], str],
) -> Packed:
    """The files other than rows: rejects, card and `run.json`."""
    files = writer.close()
    write_rows(folder / "rejects.parquet", [asdict(reject) for reject in rejects], REJECT_FEATURES)
    rows: dict[str, int] = {split: writer.rows[split] for split in SPLITS if writer.rows[split]}
    groups = {split: len(writer.groups[split]) for split in rows}
    packed = Packed(rows, unit, groups, dict(Counter(reject.reason for reject in rejects)))
    (folder / "README.md").write_text(card(packed), encoding="utf-8")
    write_run_json(folder, settings, **asdict(packed), files=files)
    return packed


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success; remains of a killed run are removed first."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with full_disk_as_user_error(out):
        (partial / "data").mkdir(parents=True)
        yield partial
        write_audit(partial)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        partial.rename(out)


def is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` is the dataset of these settings; raises `UserError` if it has other content."""
    if (record := read_run_json(out)) is not None:
        if changes := differences(record["config"], json.loads(json.dumps(settings))):
            raise UserError(
                f"{out} was made with other settings ({'; '.join(changes)}); give another --out or remove it"
            )
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a finished dataset; give another --out or remove it")
    return False
