"""Edit twins in a pair dataset: of photos and of twins, alike but for the box, donors of splices in the same split."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import save_tiny_pipeline
from tests.generate.test_edits import textured
from vlm_detect.generate.caption_step import caption_photos, plan_captions
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.edit_step import donor_groups
from vlm_detect.generate.options import CaptionConfig, PackConfig, RenderConfig, SourceConfig
from vlm_detect.generate.pack import pack_pairs
from vlm_detect.generate.pair_rows import scaled_box, with_edit
from vlm_detect.generate.render_step import plan_renders, render_twins
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.shards import begin, read_rows

COUNT = 16


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    (work / "photos").mkdir()
    rows = []
    for i in range(COUNT):
        name = f"{i:02d}.{'jpg' if i % 4 == 0 else 'png'}"
        textured(i, (48, 40)).save(work / "photos" / name, **({"quality": 50} if i % 4 == 0 else {}))
        rows.append(json.dumps({"file_name": name, "caption": f"thing {i}", "group": f"g{i}"}))
    (work / "photos" / "metadata.jsonl").write_text("\n".join(rows))
    source, caption = SourceConfig(str(work / "photos"), shard_size=8), CaptionConfig(captioner="column")
    render = RenderConfig(
        generator=str(save_tiny_pipeline(work / "sd3")),
        twins=TwinKinds("vae,edit"),
        steps=2,
        guidance=1.0,
        render_size=32,
        max_sequence_length=8,
        render_batch=4,
    )
    plans = plan_captions(source, caption), plan_renders(plan_captions(source, caption), render)
    for name, plan in zip(("captions", "renders"), plans, strict=True):
        begin(work / name, plan)
    caption_photos(source, caption, plans[0], work / "captions")
    render_twins(work / "captions", render, plans[1], work / "renders")
    return work / "renders"


@pytest.fixture(scope="module")
def rows(renders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("data") / "pairs"
    pack_pairs([renders], out, PackConfig(), EncodeConfig(encode="png"), {})
    return [row | {"split": f.name.split("-")[0]} for f in out.glob("data/*") for row in pq.read_table(f).to_pylist()]


def pixels(cell: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])), int)


def test_photos_and_twins_are_edited(rows: list[dict[str, Any]]) -> None:
    edits = [row for row in rows if row["kind"] == "edit"]
    labels = [row["image_label"] for row in edits]
    assert labels.count("real") > COUNT // 2
    assert labels.count("generated") > COUNT // 2
    assert len({row["edit"]["operation"] for row in edits}) >= 6
    assert len({row["pair_id"] for row in rows}) == len(rows)
    for row in edits:
        assert (row["edit"]["donor"] is not None) == (row["edit"]["operation"] == "splice")
        assert (row["prompt"] is not None) == (row["edit"]["operation"] == "inpaint")
    photo_edits = {row["generator"] for row in edits if row["image_label"] == "real"}
    assert photo_edits - {"inpaint"} <= {row["edit"]["operation"] for row in edits} | {rows[0]["generator"]}


def test_nothing_but_the_box_differs(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["kind"] != "edit":
            continue
        changed = np.abs(pixels(row["image"]) - pixels(row["twin"])).max(axis=-1) > 0
        x0, y0, x1, y1 = row["edit"]["box"]
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
        assert not changed.any()


def test_the_image_of_a_twins_edit_is_that_twin(rows: list[dict[str, Any]]) -> None:
    twins = {row["source"]["sha256"]: row["twin"]["bytes"] for row in rows if row["kind"] == "vae"}
    photos = {row["source"]["sha256"]: row["image"]["bytes"] for row in rows if row["kind"] == "vae"}
    for row in (row for row in rows if row["kind"] == "edit"):
        expected = photos if row["image_label"] == "real" else twins
        assert row["image"]["bytes"] == expected[row["source"]["sha256"]]


def test_a_photo_and_what_was_spliced_from_it_share_a_split(rows: list[dict[str, Any]]) -> None:
    split = {row["source"]["sha256"][:16]: row["split"] for row in rows}
    group = {row["source"]["sha256"][:16]: row["group"] for row in rows}
    spliced = [row for row in rows if row["edit"] and row["edit"]["donor"]]
    assert spliced
    for row in spliced:
        assert row["split"] == split[row["edit"]["donor"]]
        assert row["group"] == group[row["edit"]["donor"]]


def test_a_splice_joins_two_groups_only(rows: list[dict[str, Any]]) -> None:
    photos_of: dict[str, set[str]] = {}
    for row in rows:
        photos_of.setdefault(row["group"], set()).add(row["source"]["sha256"])
    assert max(map(len, photos_of.values())) == 2
    names = [f"group{i}" for i in range(7)]
    partners = donor_groups(names)
    assert set(partners) == set(names)
    assert all(name != partner for name, partner in partners.items())
    assert sum(partners[partners[name]] == name for name in names) == 6
    assert donor_groups(["one"]) == {}


def test_edits_at_another_size_stay_within_their_scaled_box(renders: Path, tmp_path: Path) -> None:
    pack_pairs([renders], tmp_path / "pairs", PackConfig(size=48), EncodeConfig(encode="png"), {})
    for file in (tmp_path / "pairs" / "data").iterdir():
        for row in (row for row in pq.read_table(file).to_pylist() if row["kind"] == "edit"):
            changed = np.abs(pixels(row["image"]) - pixels(row["twin"])).max(axis=-1) > 0
            x0, y0, x1, y1 = row["edit"]["box"]
            changed[y0:y1, x0:x1] = False
            assert not changed.any()


def test_edited_pixels_are_the_rendered_ones(renders: Path) -> None:
    twins = [twin for row in read_rows(renders, 0) for twin in row["twins"]]
    edited = next(twin for twin in twins if twin["edit"] and twin["edit"]["of"] == "photo")
    after = Image.open(io.BytesIO(edited["image"]["bytes"]))
    before = textured(3, after.size)
    np.testing.assert_array_equal(np.asarray(with_edit(before, before, after)), np.asarray(after))
    assert scaled_box([1, 2, 3, 4], (8, 8), (8, 8)) == [1, 2, 3, 4]
    assert scaled_box([4, 4, 8, 8], (16, 16), (32, 32)) == [2, 2, 22, 22]
