"""The bundled photographs: read without network, cut into tiles, grouped by photograph."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vlm_detect.data.demo_photos import TileConfig, write_demo_photos
from vlm_detect.data.sources import SourcePhoto, open_source
from vlm_detect.errors import UserError

pytest.importorskip("skimage")


def test_tiles_and_their_groups(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    count = write_demo_photos(out, TileConfig(tile=64, tiles_per_group=4))
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    groups = Counter(row["group"] for row in rows)
    assert count == len(rows) == len(list(out.glob("*.png")))
    assert len(groups) == 9
    assert set(groups.values()) == {4}
    assert groups["motorcycle"] == 4
    assert all(row["licence"] for row in rows)
    assert {Image.open(path).size for path in out.glob("*.png")} == {(64, 64)}
    photos = [p for p in open_source(str(out)).read(0, count) if isinstance(p, SourcePhoto)]
    assert {p.group: p.jpeg_quality for p in photos if p.group in ("rocket", "coffee")} == {
        "rocket": 96,
        "coffee": None,
    }


def test_a_second_call_writes_the_same_and_other_files_are_kept(tmp_path: Path) -> None:
    config = TileConfig(tile=64, tiles_per_group=2)
    write_demo_photos(tmp_path / "a", config)
    write_demo_photos(tmp_path / "b", config)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert write_demo_photos(tmp_path / "a", config) == 18
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    with pytest.raises(UserError, match="exists with other content"):
        write_demo_photos(tmp_path / "mine", config)
    with pytest.raises(UserError, match="multiple of 16"):
        write_demo_photos(tmp_path / "c", TileConfig(tile=50))
