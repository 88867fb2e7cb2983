"""Measured reasons of a dataset's images, in two passes over shards with a calibration between.

    measure_images(dataset, plan, work / "measures", launch)             # every image's numbers
    calibration = calibrate(work / "measures")                           # of the training split only
    speak(dataset, plan, work / "measured", ...)                         # sentences, for the images of every split

The calibration needs the measurements of all photos of the training split, hence two passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, List, Value

from vlm_detect.columns import REASON_FEATURES
from vlm_detect.config import file_sha256
from vlm_detect.data.members import Member, Members, open_members
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.jobs.shards import Plan, counted, read_plan, read_rows, write_shard
from vlm_detect.measures.calibration import FILE, MeasureCalibration, fit_calibration
from vlm_detect.measures.pixels import Pixels
from vlm_detect.measures.reasons import measured_reasons
from vlm_detect.measures.registry import MEASURES, Measured, measure_image
from vlm_detect.records import Reject

# A shard's rows: the reasons of one image, identified by row number and column.
SENTENCE_FEATURES = Features({"row": Value("int64"), "column": Value("string"), "reasons": List(REASON_FEATURES)})
_FACTS = {
    "row": Value("int64"),
    "column": Value("string"),
    "split": Value("string"),
    "label": Value("string"),
    "group": Value("string"),
    "sha256": Value("string"),
    "width": Value("int32"),
    "height": Value("int32"),
    "jpeg_quality": Value("int32"),
}


def measured_features() -> Features:
    """One column per measure, null if the image is too small for it."""
    return Features({**_FACTS, **{name: Value("float64") for name in MEASURES}})


def plan_measures(members: Members, dataset: str, shard_size: int) -> Plan:
    return Plan(
        "measures", members.rows, shard_size, members.fingerprint, {"dataset": dataset, "measures": [*MEASURES]}
    )


@dataclass(frozen=True)
class MeasureShard:
    """The numbers of one shard's images; called in any process."""

    dataset: str
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        rows, rejects = [], []
        known: dict[str, Measured] = {}  # a photo has one row for each of its twins
        for member in counted_rows(open_members(self.dataset), self.plan, shard):
            try:
                key = member.image.sha256
                if key not in known:
                    known[key] = _measure(member)
            except ImageRejected as error:
                rejects.append(Reject(member.id, "measures", error.reason, error.detail))
            except UserError as error:
                rejects.append(Reject(member.id, "measures", "unreadable", str(error)))
            else:
                rows.append(_row(member, known[key]))
        write_shard(self.folder, shard, rows, measured_features(), rejects)


def _measure(member: Member) -> Measured:
    """The image's measurements without pixels; raises `ImageRejected` if it is not an image, or too small for any
    measure."""
    decoded = decode_image(member.image.content)
    measured = measure_image(np.asarray(decoded.image), decoded.jpeg.quality if decoded.jpeg else None)
    if not measured.values:
        raise ImageRejected("too_small", f"{decoded.width}x{decoded.height} pixels")
    return Measured(measured.values, measured.size, measured.jpeg_quality)


def _row(member: Member, measured: Measured) -> dict[str, Any]:
    facts = {name: getattr(member, name) for name in ("row", "column", "split", "label", "group")}
    width, height = measured.size
    stored = {"width": width, "height": height, "jpeg_quality": measured.jpeg_quality}
    return {**facts, "sha256": member.image.sha256, **stored, **measured.values}


def _measured(row: Mapping[str, Any], pixels: Pixels | None = None) -> Measured:
    values = {name: row[name] for name in MEASURES if row[name] is not None}
    return Measured(values, (row["width"], row["height"]), row["jpeg_quality"], pixels)


def calibrate(folder: Path) -> MeasureCalibration:
    """From the finished shards of the numbers: the training split's photos and generated images, each once."""
    plan = read_plan(folder)
    seen: dict[str, dict[str, Any]] = {}
    for shard in range(plan.shards):
        for row in read_rows(folder, shard):
            if row["split"] == "train" and row["label"] in ("real", "generated"):
                seen.setdefault(row["sha256"], row)
    rows = list(seen.values())
    measured = [_measured(row) for row in rows]
    return fit_calibration(measured, [row["label"] == "generated" for row in rows], [row["group"] for row in rows])


def plan_sentences(measures: Plan, calibration: Path, *, seed: int, most: int) -> Plan:
    settings = {"seed": seed, "most": most, "calibration": file_sha256(calibration / FILE)}
    return Plan("measured", measures.items, measures.shard_size, measures.inputs, settings)


@dataclass(frozen=True)
class SentenceShard:
    """The measured reasons of one shard's images. `work` contains the calibration and the shards of numbers."""

    dataset: str
    plan: Plan
    work: Path
    folder: Path

    def __call__(self, shard: int) -> None:
        calibration = MeasureCalibration.load(self.work)
        assert calibration is not None  # the plan has its digest
        seed, most = self.plan.settings["seed"], self.plan.settings["most"]
        numbers = {(row["row"], row["column"]): row for row in read_rows(self.work / "measures", shard)}
        rows, rejects = [], []
        for member in counted_rows(open_members(self.dataset), self.plan, shard):
            row = numbers.get((member.row, member.column))
            if row is None or member.label == "edited":
                continue
            if not any(calibration.standing(_measured(row), name) for name in MEASURES):
                size = f"{row['width']}x{row['height']} pixels: the training split has too few photos of this size"
                rejects.append(Reject(member.id, "measured", "unusual_size", size))
                continue
            pixels = Pixels.from_array(np.asarray(decode_image(member.image.content).image))
            spoken = measured_reasons(
                _measured(row, pixels), calibration, member.label, seed=f"{seed}:{row['sha256']}", most=most
            )
            reasons = [reason.to_row() for reason in spoken]
            rows.append({"row": member.row, "column": member.column, "reasons": reasons})
        write_shard(self.folder, shard, rows, SENTENCE_FEATURES, rejects)


def counted_rows(members: Members, plan: Plan, shard: int) -> Iterator[Member]:
    """The images of a shard's rows; each row counts once in the progress."""
    for number, split, row in counted(members.numbered(*plan.span(shard))):
        yield from members.of_row(number, split, row)
