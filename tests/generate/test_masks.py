"""Masks of edits become boxes, and what they cover becomes edited; an imported set trains with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo
from tests.scripts.here import run_here
from vlm_detect.data.pairs import open_dataset
from vlm_detect.generate.masks import edit_of_mask, label_with_edit
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.train.examples import QuestionOptions, Units


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 60} if file_format == "JPEG" else {}))
    return buffer.getvalue()


def mask(box: tuple[int, int, int, int] | None, size: tuple[int, int] = (40, 32), mode: str = "L") -> Image.Image:
    image = Image.new("L", size)
    if box:
        image.paste(255, box)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_mask_is_its_bounding_box(mode: str, file_format: str) -> None:
    if file_format == "JPEG" and mode in ("1", "P"):
        pytest.skip("JPEG has no such pixels")
    found = edit_of_mask(encoded(mask((8, 4, 24, 20), mode=mode), file_format), (40, 32))
    assert found is not None
    assert np.abs(np.array(found["box"]) - (8, 4, 24, 20)).max() <= (0 if file_format == "PNG" else 1)
    assert found["operation"] is found["strength"] is None


def test_a_mask_of_another_size_is_scaled() -> None:
    found = edit_of_mask(encoded(mask((8, 4, 24, 20))), (80, 96))
    assert found is not None
    assert found["box"] == [16, 12, 48, 60]


@pytest.mark.parametrize("box", [None, (0, 0, 40, 32)])
def test_empty_and_full_masks_are_no_edit(box: Any) -> None:
    assert edit_of_mask(encoded(mask(box)), (40, 32)) is None


def test_labels_under_a_mask() -> None:
    edit = {"box": [0, 0, 4, 4]}
    assert label_with_edit("generated", edit) == label_with_edit("edited", edit) == "edited"
    assert label_with_edit("generated", None) == "generated"
    with pytest.raises(ImageRejected, match="mask_on_real"):
        label_with_edit("real", edit)
    with pytest.raises(ImageRejected, match="bad_mask"):
        edit_of_mask(b"no image", (4, 4))


def test_a_set_with_masks_is_imported_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like OpenSDI: real images, fully generated ones, and partly inpainted photos."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = ["real", "whole", "part"] * 8
    boxes = {"real": None, "whole": (0, 0, 40, 32), "part": (8, 4, 24, 20)}
    columns = {
        "image": [encoded(photo(i, (40, 32)), "JPEG") for i in range(24)],
        "mask": [encoded(mask(boxes[kind])) for kind in kinds],
        "label": [int(kind != "real") for kind in kinds],
        "model": ["sdxl" if kind != "real" else "real" for kind in kinds],
    }
    columns["label"][0] = None
    columns["mask"][2] = b"no image"
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "set" / "train-00000-of-00001.parquet")
    arguments = ["--from", "hub", tmp_path / "set", "--out", tmp_path / "out", "--validation", 0.2]
    asked = run_here("data_gen/import_images.py", *arguments)
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)
    assert "does not say whether an image is real (the row's model is " in asked.stderr
    assert "--labels 0=real 1=generated" in asked.stderr
    done = run_here("data_gen/import_images.py", *arguments, "--labels", "0=real", "1=generated")
    assert done.returncode == 0, done.stderr
    assert "label: 0 = real (7), 1 = generated (16); 1 without a label" in done.stdout
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert sorted(row["reason"] for row in rejects) == ["bad_mask", "no_label"]
    opened = open_dataset(tmp_path / "out")
    rows = [row for split in opened.values() for row in split]
    assert {label: sum(row["label"] == label for row in rows) for label in ("real", "generated", "edited")} == {
        "real": 7,
        "generated": 8,
        "edited": 7,
    }
    assert all((row["edit"] is not None) == (row["label"] == "edited") for row in rows)
    assert all(row["edit"]["box"] == [8, 4, 24, 20] for row in rows if row["edit"])
    units = Units(opened["train"], QuestionOptions(question_kinds=["place", "operation", "explain", "multiple_choice"]))
    asked_about = [
        question
        for i in range(len(units))
        for example in units[0, i]
        for question in example.questions
        if example.label == "edited"
    ]
    assert asked_about
    assert {question.answer for question in asked_about if question.kind == "place"} <= {"At the centre."}
