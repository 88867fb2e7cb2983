"""Texts about images as others publish them, in one form."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_detect.data.texts import Note, read_texts
from vlm_detect.errors import UserError


def written(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


def conversation(image: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nReal or fake?"}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": image, "label": 0, "conversations": turns}


def test_conversations(tmp_path: Path) -> None:
    inside = "data:image/png;base64," + base64.b64encode(b"bytes of a file").decode()
    records = [conversation("ff++/fake/1.png", "It is fake."), conversation(inside, "Real."), {"no": "image"}]
    (first, second, third) = read_texts("conversations", written(tmp_path / "a.json", records))
    assert first == ("ff++/fake/1.png", [Note("It is fake.")])
    assert second == (hashlib.sha256(b"bytes of a file").hexdigest(), [Note("Real.")])
    assert third[0] == "item 3"
    assert isinstance(third[1], ValueError)


def test_loki(tmp_path: Path) -> None:
    problems = {
        "global": [{"desc": "Too smooth."}],
        "regional": [{"region": [10, 20, 30, 40], "desc": "Six fingers."}],
    }
    records = [{"image_path": ["media/a.jpg"], "problems": problems}, {"image_path": "b.jpg", "problems": {}}, {}]
    (first, second, third) = read_texts("loki", written(tmp_path / "a.json", records))
    assert first == ("media/a.jpg", [Note("Too smooth."), Note("Six fingers.", (10, 20, 40, 60))])
    assert second == ("b.jpg", [])
    assert str(third[1]) == "no 'problems'"


def test_synthscars(tmp_path: Path) -> None:
    flat = {"sentence": "the hand", "explanation": "The hand has six fingers.", "segmentation": [[5, 6, 25, 6, 15, 30]]}
    nested = {"sentence": "The sign is garbled.", "segmentation": [[[1, 2], [3, 2]], [[3, 9]]]}
    records = [{"17": {"img_file_name": "a/17.jpg", "caption": "...", "refs": [flat, nested]}}]
    ((name, notes),) = read_texts("synthscars", written(tmp_path / "a.json", records))
    assert name == "a/17.jpg"
    assert notes == [
        Note("The hand has six fingers.", (5, 6, 25, 30)),
        Note("The sign is garbled.", (1, 2, 3, 9)),
    ]


def test_x_aigd(tmp_path: Path) -> None:
    labels = [{"label": "low-level-symbol", "points": [[1.5, 2.0], [9.0, 8.0]]}]
    rows = [
        {"image": {"bytes": b"one", "path": None}, "generator": "flux", "labels": labels},
        {"image": {"bytes": b"two", "path": None}, "generator": "flux", "labels": None},
        {"image": {"bytes": b"three", "path": None}, "generator": "flux", "labels": [{"label": "new", "points": []}]},
    ]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "labeled_test-0.parquet")
    (first, second, third) = read_texts("x_aigd", tmp_path)
    assert first == (
        hashlib.sha256(b"one").hexdigest(),
        [Note("Letters or symbols are malformed.", (1.5, 2.0, 9.0, 8.0), "text")],
    )
    assert second[1] == []
    assert "category 'new'" in str(third[1])
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "data" / "labeled_test-0.parquet")
    with pytest.raises(UserError, match="lacks the columns image and labels"):
        list(read_texts("x_aigd", tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no parquet file"):
        list(read_texts("x_aigd", tmp_path / "empty"))


def test_plain(tmp_path: Path) -> None:
    records = [
        {"image": "a.png", "text": "A hand.", "kind": "anatomy", "box": [1, 2, 3, 4]},
        {"id": "7c", "about": "twin", "text": "A sign."},
        {"id": "7c", "about": "both", "text": "A sign."},
        {"image": "a.png"},
    ]
    found = list(read_texts("plain", written(tmp_path / "a.json", records)))
    assert found[0] == ("a.png", [Note("A hand.", (1, 2, 3, 4), "anatomy")])
    assert found[1] == ("7c", [Note("A sign.", about="twin")])
    assert [isinstance(one, ValueError) for _, one in found] == [False, False, True, True]


def test_a_broken_line_is_reported_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "text": "A hand."}\n{"image":\n')
    found = list(read_texts("plain", tmp_path / "a.jsonl"))
    assert found[1][0] == "line 2"
    assert "not JSON" in str(found[1][1])
