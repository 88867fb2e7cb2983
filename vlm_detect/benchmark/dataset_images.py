"""The images of a dataset's split, and what its rows say of them, by what items call them: "12:twin".

images = DatasetImages(folder, rows)
images.image("12:twin"), images.measured("12:twin"), images.subject("12:twin"), images.photo_of("12:twin")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from vlm_detect.columns import REASON_COLUMNS
from vlm_detect.images.decode import decode_image
from vlm_detect.images.stored import StoredImage
from vlm_detect.measures.calibration import MeasureCalibration, octave_of, quality_of
from vlm_detect.measures.registry import Measured, measure_image
from vlm_detect.records import Label, Reason, Subject, instruction_of, label_named, label_of_twin


@dataclass(frozen=True)
class DatasetImages:
    """`rows` are those of one split, undecoded; `folder` is the dataset's."""

    folder: Path
    rows: Dataset

    @property
    def calibration(self) -> MeasureCalibration | None:
        """What is usual of its photos; None of a dataset without measured reasons."""
        return MeasureCalibration.load(self.folder)

    def stored(self, ref: str) -> StoredImage:
        row, column = self._cell(ref)
        return StoredImage.from_cell(row[column])

    def image(self, ref: str) -> Image.Image:
        """The pixels, RGB."""
        return decode_image(self.stored(ref).content).image

    def measured(self, ref: str, calibration: MeasureCalibration) -> Measured:
        """Every measure, as `add-reasons` takes it, without the pixels; none where no photo compares with the image."""
        decoded = decode_image(self.stored(ref).content)
        quality = decoded.jpeg.quality if decoded.jpeg else None
        if calibration.photos_like(octave_of(decoded.image.size), quality_of(quality)) is None:
            return Measured({}, decoded.image.size, quality)  # measuring a large one takes seconds and gigabytes
        return measure_image(np.asarray(decoded.image), quality).without_pixels()

    def subject(self, ref: str) -> Subject:
        """What is known of an image, its reasons among that."""
        row, column = self._cell(ref)
        is_twin = column == "twin"
        reasons = row.get(REASON_COLUMNS["pairs" if "twin" in row else "images"][column])
        return Subject(
            label=_label(row, is_twin=is_twin),
            kind=row["kind"] if is_twin else None,
            generator=row.get("generator") or "",
            caption=(row.get("caption") or "") if is_twin else "",
            edit=row.get("edit") if is_twin or "twin" not in row else None,
            size=self.stored(ref).size,
            instruction=instruction_of(row) if is_twin else "",
            reasons=None if reasons is None else tuple(Reason.from_row(one) for one in reasons),
        )

    def photo_of(self, ref: str) -> str | None:
        """What the photo is called that a twin was made from; None where there is none."""
        row, column = self._cell(ref)
        return f"{ref.partition(':')[0]}:image" if column == "twin" and row["image_label"] == "real" else None

    def _cell(self, ref: str) -> tuple[Mapping[str, Any], str]:
        index, _, column = ref.partition(":")
        return self.rows[int(index)], column


def _label(row: Mapping[str, Any], *, is_twin: bool) -> Label:
    if is_twin:
        return label_of_twin(row["kind"])
    label = label_named(str(row.get("image_label") or row.get("label")))
    assert label is not None  # rows of other labels are refused when a split is opened
    return label
