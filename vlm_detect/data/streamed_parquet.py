"""Rows of parquet files on the Hub, read where they are: columns and row groups are fetched as needed, and not stored.

    splits = open_streamed_splits("owner/set")             # None if its files are not parquet
    for facts in splits["train"].facts(["label"]): ...     # fetches these columns only
    for index, row in splits["train"].read([7, 8]): ...    # fetches the row groups of these rows

So a set larger than the disk can be listed completely and a part of it imported: a selection that follows `cluster`
takes its rows from few row groups.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from vlm_detect.data.dataset_rows import DatasetRows, ask_hub, is_offline, split_spec
from vlm_detect.errors import UserError, first_line


class StreamedParquet(DatasetRows):
    """The rows of one split; `urls` are its files, as fsspec opens them."""

    def __init__(self, urls: Sequence[str], name: str, column: str = "", mask_column: str = "") -> None:
        import datasets

        self._urls, self._name = list(urls), name
        self._about: dict[str, pq.FileMetaData] = {}  # footers that were read, by file
        with self._opened(self._urls[0]) as file:
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
        self._choose_columns(dict(features), name, column, mask_column)

    def facts(self, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        kept = [name for name in self.features if name not in self._kinds and (columns is None or name in columns)]
        for url in self._urls:
            with self._opened(url) as file:
                for batch in file.iter_batches(columns=kept):
                    yield from batch.to_pylist() if kept else [{}] * batch.num_rows

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The images and masks of these ascending indices."""
        wanted = [*self._columns, *([self.mask] if self.mask else [])]
        for place, grouped in groupby(indices, self._place):
            here, first = list(grouped), self._starts[place]
            url, group = self._groups[place]
            with self._opened(url) as file:
                rows = file.read_row_group(group, columns=wanted).take([i - first for i in here])
            yield from zip(here, rows.to_pylist(), strict=True)

    def cluster(self, index: int) -> str:
        return f"row group {self._place(index)}"

    @cached_property
    def _groups(self) -> list[tuple[str, int]]:
        """(file, number in it) of every row group."""
        return [(url, group) for url, sizes in self._sizes for group in range(len(sizes))]

    @cached_property
    def _starts(self) -> list[int]:
        """The index of each row group's first row; at last the number of rows."""
        starts = [0]
        for _, sizes in self._sizes:
            for size in sizes:
                starts.append(starts[-1] + size)
        return starts

    @cached_property
    def _sizes(self) -> list[tuple[str, list[int]]]:
        found = []
        for url in self._urls:
            if url not in self._about:
                with self._opened(url):
                    pass
            about = self._about[url]
            found.append((url, [about.row_group(i).num_rows for i in range(about.num_row_groups)]))
        return found

    def _place(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    @contextmanager
    def _opened(self, url: str) -> Iterator[pq.ParquetFile]:
        try:
            known = self._about.get(url)
            with open_remote(url) as stream, pq.ParquetFile(stream, metadata=known, pre_buffer=True) as file:
                self._about[url] = file.metadata
                yield file
        except (OSError, ValueError) as error:  # pyarrow's and the Hub client's errors are of these kinds
            raise UserError(f"{self._name}: {url.rpartition('/')[2]} cannot be read ({first_line(error)})") from error


@contextmanager
def open_remote(url: str) -> Iterator[BinaryIO]:
    """A file that is read by ranges, without a local copy."""
    import fsspec

    with fsspec.open(url, "rb") as stream:
        yield stream


def open_streamed_splits(spec: str, **columns: str) -> dict[str, StreamedParquet] | None:
    """Each split of a Hub dataset of parquet files, or the one that `spec` names; None for anything else.

    `columns` are passed to `DatasetRows`. Raises `UserError` where the Hub gives no access.
    """
    import datasets

    name, config, split, column = split_spec(spec)
    if Path(name).expanduser().exists() or is_offline():
        return None
    ask_hub(name)
    try:
        files = datasets.load_dataset_builder(name, config or None).config.data_files or {}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name}: cannot be read as a dataset: {first_line(error)}") from error
    urls = {str(key): [str(url) for url in found] for key, found in files.items()}
    if not urls or not all(found and all(url.endswith(".parquet") for url in found) for found in urls.values()):
        return None
    if split and split not in urls:
        raise UserError(f"{spec}: has no split {split} (has {', '.join(urls)})")
    columns["column"] = columns.get("column") or column
    return {key: StreamedParquet(found, name, **columns) for key, found in urls.items() if split in ("", key)}
