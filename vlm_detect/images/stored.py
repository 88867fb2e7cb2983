"""Images as a dataset stores them: bytes with a key, decoded only where pixels are needed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image


@dataclass(frozen=True)
class StoredImage:
    """One encoded image."""

    content: bytes

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> StoredImage:
        """From a cell of an undecoded image column, which holds bytes or the path of a file."""
        return cls(stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes())

    @property
    def key(self) -> str:
        """Equal keys, equal pixels."""
        return self.sha256

    @cached_property
    def sha256(self) -> str:
        """Of the stored bytes."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, read from the header."""
        return Image.open(io.BytesIO(self.content)).size

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.content)).convert("RGB")


@dataclass(frozen=True)
class Cells(Sequence[StoredImage]):
    """Image cells of a dataset, (row, column) each; an image is read when it is asked for."""

    rows: Dataset  # undecoded
    places: Sequence[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, column = self.places[index]
        return StoredImage.of(self.rows.select_columns([column])[row][column])


def undecoded(rows: Dataset) -> Dataset:
    """The same rows with every image column as stored bytes."""
    for name, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
    return rows
