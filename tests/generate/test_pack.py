"""A pair dataset from photos to `load_dataset`, under the rules that leave only content to learn from."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo, save_tiny_pipeline
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.config import file_sha256, read_run_json
from vlm_detect.data.pairs import load_pairs, open_dataset
from vlm_detect.errors import UserError
from vlm_detect.generate.caption_step import caption_photos, plan_captions
from vlm_detect.generate.dataset_files import is_finished
from vlm_detect.generate.options import CaptionConfig, PackConfig, RenderConfig, SourceConfig
from vlm_detect.generate.pack import pack_pairs
from vlm_detect.generate.render_step import RENDER_FEATURES, plan_renders, render_twins
from vlm_detect.generate.usable import perceptual_hash
from vlm_detect.images.decode import decode_image
from vlm_detect.images.encode import fit
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.shards import Plan, begin, write_shard

PACK = PackConfig(size=24)
ENCODE = EncodeConfig()


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def make_photos(folder: Path) -> None:
    """Seven groups of two, a JPEG among them, one broken file, one photo twice, one near copy, one blank, one tiny."""
    folder.mkdir()
    rows = []
    for i in range(14):
        name = f"{i:02d}.jpg" if i == 3 else f"{i:02d}.png"
        options: dict[str, Any] = {"quality": 40, "subsampling": 2} if i == 3 else {}
        photo(i, (60, 40)).save(folder / name, **options)
        rows.append(
            {"file_name": name, "group": f"group{i // 2}", "caption": f"a photo of thing {i}", "licence": "CC0"}
        )
    (folder / "50_broken.png").write_bytes((folder / "00.png").read_bytes()[:200])
    (folder / "51_again.png").write_bytes((folder / "00.png").read_bytes())
    photo(1, (60, 40)).resize((90, 60)).save(folder / "52_copy.png")
    Image.new("RGB", (40, 40), "grey").save(folder / "53_blank.png")
    photo(40, (60, 12)).save(folder / "54_small.png")
    photo(41, (60, 40)).save(folder / "55_no_words.png")
    photo(42, (17, 17)).save(folder / "56_smaller_than_its_twin.png")
    rows += [{"file_name": n, "caption": "a thing"} for n in ("51_again.png", "52_copy.png")]
    rows += [{"file_name": "55_no_words.png", "caption": "A blurry photo."}]
    rows += [{"file_name": "56_smaller_than_its_twin.png", "caption": "a thing"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two steps, done once."""
    work = tmp_path_factory.mktemp("work")
    make_photos(work / "photos")
    generator = str(save_tiny_pipeline(work / "sd3"))
    source, caption = SourceConfig(str(work / "photos"), shard_size=8), CaptionConfig(captioner="column")
    render = RenderConfig(
        generator=generator, steps=2, guidance=2.0, render_size=24, max_sequence_length=8, render_batch=4
    )
    captions_plan = plan_captions(source, caption)
    renders_plan = plan_renders(captions_plan, render)
    begin(work / "captions", captions_plan)
    begin(work / "renders", renders_plan)
    caption_photos(source, caption, captions_plan, work / "captions")
    render_twins(work / "captions", render, renders_plan, work / "renders")
    return work / "renders"


@pytest.fixture(scope="module")
def pairs(renders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "pairs"
    pack_pairs([renders], out, PACK, ENCODE, settings())
    return out


def settings() -> dict[str, Any]:
    return {"pack": asdict(PACK), "encode": asdict(ENCODE)}


def test_load_dataset_opens_it_with_its_three_splits(pairs: Path) -> None:
    opened = datasets.load_dataset(str(pairs))
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 16, "validation": 4, "test": 8}
    assert opened["train"].features == PAIR_FEATURES
    assert len(load_pairs(pairs, "test")) == 8
    names = {"README.md", "audit.json", "data", "rejects.parquet", "run.json"}
    assert {path.name for path in pairs.iterdir()} == names


def test_folders_of_the_same_name_are_distinguished_and_a_rewritten_one_is_read_again(
    pairs: Path, tmp_path: Path
) -> None:
    lengths = {}
    for parent, rows in (("a", 3), ("b", 2), ("a", 1)):
        folder = tmp_path / parent / "pairs"
        shutil.copytree(pairs, folder, dirs_exist_ok=True)
        for file in folder.glob("data/*.parquet"):
            pq.write_table(pq.read_table(file).slice(0, rows), file)
        lengths[parent, rows] = len(open_dataset(folder)["train"])
    assert lengths == {("a", 3): 3, ("b", 2): 2, ("a", 1): 1}


def test_no_group_is_in_two_splits(pairs: Path) -> None:
    groups = [set(rows["group"]) for rows in open_dataset(pairs).values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 7


def test_the_wrapping_of_both_members_is_alike(pairs: Path) -> None:
    rows = pq.read_table(pairs / "data").to_pylist()
    for row in rows:
        image, twin = (decode_image(row[member]["bytes"]) for member in ("image", "twin"))
        assert image.image.size == twin.image.size
        assert (image.format, image.jpeg) == (twin.format, twin.jpeg)
        assert row["image"]["path"] is row["twin"]["path"] is None
        encoding = json.loads(row["receipt"]["encode"])
        assert (encoding["format"], encoding["quality"], encoding["subsampling"]) == ("jpeg", 96, "4:4:4")
        assert encoding["image_scale"] > 0
    assert {decode_image(row["image"]["bytes"]).image.size for row in rows} == {(34, 17)}
    assert len({row["pair_id"] for row in rows}) == len(rows) == 28


def test_a_row_records_how_it_was_made(pairs: Path) -> None:
    rows = pq.read_table(pairs / "data").to_pylist()
    rendered, rebuilt = ([row for row in rows if row["kind"] == kind] for kind in ("caption", "vae"))
    assert len(rendered) == len(rebuilt) == 14
    assert all(row["image_label"] == "real" and row["source"]["licence"] == "CC0" for row in rows)
    assert all(row["caption"] == row["prompt"] and row["caption"].startswith("thing") for row in rendered)
    assert all(row["receipt"]["steps"] == 2 and row["receipt"]["batch"] for row in rendered)
    assert all(row["receipt"]["steps"] is None and row["prompt"] is None for row in rebuilt)
    assert len({row["seed"] for row in rows}) == len(rows)
    for row in rows:
        source = Path(row["source"]["path_or_id"])
        assert row["source"]["sha256"] == file_sha256(source)
        assert row["source"]["phash"] == perceptual_hash(decode_image(source).image)
        assert row["generator"].endswith("sd3")
        assert (row["receipt"]["captioner"], row["receipt"]["dtype"]) == ("column", "float32")
    assert {row["receipt"]["scheduler"] for row in rendered} == {"FlowMatchEulerDiscreteScheduler"}
    assert {row["receipt"]["quantization"] for row in rows} == {"none"}


def test_the_twin_of_a_jpeg_was_compressed_as_the_photo_was(pairs: Path) -> None:
    rows = pq.read_table(pairs / "data").to_pylist()
    first = {Path(row["source"]["path_or_id"]).name: json.loads(row["receipt"]["encode"])["twin_first"] for row in rows}
    assert first["03.jpg"] == "jpeg 40 at 60x30"
    assert {value for name, value in first.items() if name != "03.jpg"} == {None}
    assert {row["source"]["jpeg_quality"] for row in rows if row["source"]["format"] == "JPEG"} == {40}


def test_rejects_record_their_reason(pairs: Path) -> None:
    rejects = {
        Path(row["id"]).name: (row["stage"], row["reason"])
        for row in pq.read_table(pairs / "rejects.parquet").to_pylist()
    }
    assert rejects == {
        "50_broken.png": ("decode", "truncated"),
        "51_again.png": ("pack", "duplicate"),
        "52_copy.png": ("pack", "near_duplicate"),
        "53_blank.png": ("decode", "blank"),
        "54_small.png": ("decode", "too_small"),
        "55_no_words.png": ("caption", "no_content"),
        "56_smaller_than_its_twin.png": ("render", "too_small"),
    }


def cell(seed: int, size: tuple[int, int]) -> dict[str, Any]:
    buffer = io.BytesIO()
    photo(seed, size).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_the_group_of_a_rejected_photo_stays_with_the_photo_that_it_repeats(tmp_path: Path) -> None:
    """Two films that share a frame are one source: their other frames must not be torn apart."""
    rows = []
    for i, (group, shown, named) in enumerate(
        [("a", 0, "0"), ("b", 0, "1"), ("b", 1, "2"), ("c", 2, "3"), ("d", 2, "3"), ("d", 3, "4"), ("e", 4, "5")]
    ):
        source = {"path_or_id": f"{i}", "sha256": named * 64, "phash": perceptual_hash(photo(shown)), "width": 48}
        twin = {"kind": "vae", "image": cell(100 + i, (32, 24)), "seed": i, "batch": "0/1"}
        about = {"id": named, "group": group, "captioner": "column", "generator": "g", "source": source}
        rows.append(about | {"image": cell(shown, (48, 36)), "twins": [twin], "caption": ""})
    begin(tmp_path / "renders", Plan("render", 7, 7, "", {}))
    write_shard(tmp_path / "renders", 0, rows, RENDER_FEATURES, [])
    pack_pairs([tmp_path / "renders"], tmp_path / "out", PackConfig(), ENCODE, {})
    packed = pq.read_table(tmp_path / "out" / "data").to_pylist()
    groups = {row["source"]["path_or_id"]: row["group"] for row in packed}
    assert set(groups) == {"0", "2", "3", "5", "6"}
    assert groups["0"] == groups["2"]  # frame 1 repeats frame 0, and its film has frame 2 as well
    assert groups["3"] == groups["5"]  # frame 4 is frame 3, byte for byte
    assert len(set(groups.values())) == 3


def test_near_copies_among_prompted_images_share_a_group(tmp_path: Path) -> None:
    """Unlike photos whose twins, of one prompt, came out nearly the same."""
    rows = []
    for i, rendered in enumerate((100, 101, 100, 103)):
        source = {"path_or_id": f"{i}", "sha256": f"{i:064x}", "phash": perceptual_hash(photo(i)), "width": 48}
        twin = {"kind": "caption", "image": cell(rendered, (32, 24)), "prompt": "a thing", "seed": i, "batch": "0/1"}
        about = {"id": f"{i}", "group": f"{i}", "captioner": "prompts", "generator": "g", "source": source}
        rows.append(about | {"image": cell(i, (48, 36)), "twins": [twin]})
    begin(tmp_path / "renders", Plan("render", 4, 2, "", {}))
    write_shard(tmp_path / "renders", 0, [], RENDER_FEATURES, [])  # no photo of it could be used
    write_shard(tmp_path / "renders", 1, rows, RENDER_FEATURES, [])
    pack_pairs([tmp_path / "renders"], tmp_path / "out", PackConfig(), ENCODE, {})
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    group = {int(row["source"]["sha256"], 16): row["group"] for row in rows if row["label"] == "real"}
    assert group[0] == group[2]
    assert len(set(group.values())) == 3


def test_packing_again_gives_the_same_bytes(renders: Path, pairs: Path, tmp_path: Path) -> None:
    pack_pairs([renders], tmp_path / "again", PACK, ENCODE, settings())
    for path in sorted(pairs.rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(pairs)).read_bytes()


def test_files_are_numbered_as_the_hub_does(renders: Path, tmp_path: Path) -> None:
    pack_pairs([renders], tmp_path / "out", PackConfig(pairs_per_file=1), ENCODE, {})
    assert (tmp_path / "out" / "data" / "test-00007-of-00008.parquet").exists()


def test_a_finished_folder_is_recognised_and_another_is_refused(pairs: Path, tmp_path: Path) -> None:
    assert is_finished(pairs, settings())
    assert not is_finished(tmp_path / "absent", settings())
    with pytest.raises(UserError, match="size was 24, is 48"):
        is_finished(pairs, settings() | {"pack": asdict(PackConfig(size=48))})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not a finished dataset"):
        is_finished(tmp_path, settings())
    record = read_run_json(pairs)
    assert record is not None
    assert record["rows"] == {"train": 16, "validation": 4, "test": 8}
    assert len(record["files"]) == 3


def test_a_failure_leaves_no_partial_files(renders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_detect.generate import pair_rows as module

    def fail(*args: object, **kwargs: object) -> bytes:
        raise UserError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_image", fail)
        with pytest.raises(UserError, match="disk full"):
            pack_pairs([renders], tmp_path / "out", PACK, ENCODE, {})
    assert not (tmp_path / "out").exists()
    pack_pairs([renders], tmp_path / "out", PACK, ENCODE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dataset_of_another_shape_is_one_clear_line(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no split dev"):
        load_pairs(pairs, "dev")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "words" / "data.parquet")
    with pytest.raises(UserError, match="neither a pair dataset nor an image dataset: its columns are text"):
        open_dataset(tmp_path / "words")
    buffer = io.BytesIO()
    photo(1).save(buffer, "PNG")
    row = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": ["real"], "group": ["g"]}
    datasets.Dataset.from_dict(row).to_parquet(tmp_path / "images" / "data.parquet")
    assert "label" in open_dataset(tmp_path / "images")["train"].column_names
    with pytest.raises(UserError, match="an image dataset, where pairs are needed"):
        load_pairs(tmp_path / "images", "train")
    (tmp_path / "empty").mkdir()
    for name, says in [("empty", "cannot be opened as a dataset"), ("none", "there is no such folder")]:
        with pytest.raises(UserError, match=says):
            open_dataset(tmp_path / name)


def test_the_photo_is_the_source_of_the_twin(pairs: Path) -> None:
    """A reconstruction by random weights shows little, but each photo of a pair must be its own source's pixels."""
    for row in pq.read_table(pairs / "data").to_pylist():
        source = decode_image(Path(row["source"]["path_or_id"])).image
        shown = np.asarray(decode_image(row["image"]["bytes"]).image, float)
        expected = np.asarray(fit(source, (34, 17)), float)
        assert np.abs(shown - expected).mean() < 8
