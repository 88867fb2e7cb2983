"""No place in a dataset tells a label."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from tests.data.factories import photo
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.generate.pair_rows import prompted_rows


def pair(i: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    photo(i, (16, 16)).save(buffer, "PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    return {
        "pair_id": f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}",
        "group": f"group{i}",
        "image": cell,
        "twin": cell,
        "generator": "tiny",
        "prompt": "a thing",
        "seed": i,
        "source": {"sha256": f"{i:064x}"},
        "receipt": {"encode": "{}"},
    }


def test_either_label_comes_first_among_prompted_images() -> None:
    rows = [prompted_rows(pair(i), None) for i in range(60)]
    assert all({row["label"] for row in two} == {"real", "generated"} for two in rows)
    assert 20 <= sum(two[0]["label"] == "real" for two in rows) <= 40
    assert [row["label"] for row in prompted_rows(pair(7), None)] == [row["label"] for row in rows[7]]


def test_labels_of_an_imported_set_are_mixed(tmp_path: Path) -> None:
    for label in ("real", "fake"):
        (tmp_path / label).mkdir()
        for i in range(40):
            (tmp_path / label / f"{label}{i:02d}.png").write_bytes(b"")
    labels = [entry.label for entry in open_image_set("folders", str(tmp_path)).entries]
    changes = sum(one != other for one, other in itertools.pairwise(labels))
    assert 25 <= changes <= 55  # 39.5 by chance, 1 where the classes come one after the other, 79 where by turns
