"""Stored images: bytes with a key, decoded only when pixels are needed, by the common decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.decode import DECODER, decode_image, is_plainly_stored, upright_size
from vlm_detect.images.local_files import read_named

T = TypeVar("T")


@dataclass(frozen=True)
class StoredImage:
    """One encoded image; `name` identifies it in errors."""

    content: bytes
    name: str = field(default="an image", compare=False)

    @classmethod
    def from_cell(cls, stored: Mapping[str, Any] | None, name: str = "an image") -> StoredImage:
        """From a cell of an undecoded image column, with bytes, the path of a file, or nothing.

        Raises `ImageRejected` for a missing file, or one that data may not refer to.
        """
        if stored is None or stored.get("bytes") is not None:
            return cls(b"" if stored is None else stored["bytes"], name)
        if not stored.get("path"):
            return cls(b"", name)
        try:
            return cls(read_named(stored["path"]), name)
        except ImageRejected as error:
            raise ImageRejected(error.reason, f"{name}, {stored['path']}: {error.detail}") from error

    @cached_property
    def key(self) -> str:
        """Equal keys mean equal pixels. An image that all versions of the decoder decode alike has the same key in all
        of them."""
        return self.sha256 if is_plainly_stored(self.content) else f"{self.sha256} {DECODER}"

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the stored bytes."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright, read from the header; `ImageRejected` as for `open`."""
        return self._read(upright_size)

    def open(self) -> Image.Image:
        """The pixels, RGB; raises `ImageRejected` with the image's name."""
        return self._read(lambda content: decode_image(content).image)

    def _read(self, read: Callable[[bytes], T]) -> T:
        try:
            return read(self.content)
        except ImageRejected as error:
            raise ImageRejected(error.reason, f"{self.name}: {error.detail}") from error


@dataclass(frozen=True)
class Cells(Sequence[StoredImage]):
    """Image cells of a dataset as (row, column), read lazily."""

    rows: Dataset  # undecoded
    places: Sequence[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, column = self.places[index]
        return StoredImage.from_cell(self.rows.select_columns([column])[row][column], cell_name(row, column))


def cell_name(row: int, column: str) -> str:
    return f"the image of row {row}" if column == "image" else f"the {column} of row {row}"


def undecoded(rows: Dataset) -> Dataset:
    """The rows with every image column undecoded."""
    for name, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
    return rows
