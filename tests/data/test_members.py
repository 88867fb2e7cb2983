"""Every image of a dataset in one order, for datasets of any origin."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.data.factories import photo
from vlm_detect.data.members import open_members
from vlm_detect.errors import UserError

CLASSES = datasets.ClassLabel(names=["fake", "real"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    photo(seed).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, splits: dict[str, list[Any]], label: Any) -> str:
    """As `datasets` writes it, for a set whose rows have these labels."""
    (folder / "data").mkdir(parents=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": label,
            "group": datasets.Value("int32"),
            "source": datasets.Value("string"),
        }
    )
    number = 0
    for split, labels in splits.items():
        rows = []
        for one in labels:
            number += 1
            rows.append({"image": png(number), "label": one, "group": number, "source": f"{number}.png"})
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def test_splits_come_in_their_order_and_labels_by_any_name(tmp_path: Path) -> None:
    named = {"test": ["fake", "real"], "train": ["real", "nature", "ai"], "validation": ["edited"]}
    members = open_members(write(tmp_path / "named", named, datasets.Value("string")))
    found = [one for number, split, row in members.numbered(0, 99) for one in members.of_row(number, split, row)]
    assert [(one.row, one.split, one.label) for one in found] == [
        (0, "train", "real"),
        (1, "train", "real"),
        (2, "train", "generated"),
        (3, "validation", "edited"),
        (4, "test", "generated"),
        (5, "test", "real"),
    ]
    assert [one.group for one in found] == ["3", "4", "5", "6", "1", "2"]
    assert found[0].id == "3.png"
    assert found[0].image.open().size == photo(3).size


def test_labels_of_a_class_label(tmp_path: Path) -> None:
    members = open_members(write(tmp_path / "classes", {"train": [0, 1, 0]}, CLASSES))
    found = [one.label for number, split, row in members.numbered(0, 3) for one in members.of_row(number, split, row)]
    assert found == ["generated", "real", "generated"]


def test_an_invalid_label(tmp_path: Path) -> None:
    members = open_members(write(tmp_path / "odd", {"train": ["real", "perhaps"]}, datasets.Value("string")))
    (number, split, row) = next(iter(members.numbered(1, 2)))
    with pytest.raises(UserError, match="row 1 of train: its label is not one of real, generated, edited"):
        members.of_row(number, split, row)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    names = {"a": ["real", "fake"], "b": ["real", "fake"], "c": ["fake", "real"]}
    prints = {n: open_members(write(tmp_path / n, {"train": labels}, datasets.Value("string"))).fingerprint
              for n, labels in names.items()}  # fmt: skip
    assert prints["a"] == prints["b"] != prints["c"]


def test_a_named_file_that_is_missing(tmp_path: Path) -> None:
    members = open_members(write(tmp_path / "set", {"train": ["real", "fake"]}, datasets.Value("string")))
    (number, split, row) = next(iter(members.numbered(0, 1)))
    (member,) = members.of_row(number, split, row | {"image": {"bytes": None, "path": str(tmp_path / "gone.png")}})
    with pytest.raises(UserError, match=r"gone\.png"):
        _ = member.image
