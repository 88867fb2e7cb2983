"""The images of a scan in a parquet file, in row groups: one for each shard, which a worker reads alone.

n, digest = write_items(Path("OUT/items.parquet"), items, shard_size=1024)
some = read_group(Path("OUT/items.parquet"), 7)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_detect.data.items import Item

# Places are bytes: the name of a file may be no valid text.
_SCHEMA = pa.schema(
    {"kind": pa.string(), "name": pa.string(), "place": pa.binary(), "at": pa.int64(), "size": pa.int64()}
)


def write_items(path: Path, items: Iterable[Item], shard_size: int) -> tuple[int, str]:
    """Write them as they come, and return their number and their digest."""
    n, digest = 0, hashlib.sha256()
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        given = iter(items)
        while group := list(islice(given, shard_size)):
            rows = [(one.kind, one.name, os.fsencode(one.place), one.at, one.size) for one in group]
            digest.update(repr(rows).encode("utf-8", "backslashreplace"))
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))
            n += len(group)
    return n, digest.hexdigest()


def read_group(path: Path, shard: int) -> list[Item]:
    with pq.ParquetFile(path) as file:
        rows = file.read_row_group(shard).to_pylist()
    return [Item(**{**row, "place": os.fsdecode(row["place"])}) for row in rows]


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Each address once, as a scan into one file has each image once."""
    seen: set[bytes] = set()
    for item in items:
        address = hashlib.blake2b(os.fsencode(f"{item.kind} {item.at} {item.place}"), digest_size=16).digest()
        if address not in seen:
            seen.add(address)
            yield item
