"""A twin rendered alone, by its row, is the twin of the dataset; and the rest of what a row is reproduced by."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo, save_tiny_pipeline
from tests.generate.test_edits import textured
from tests.scripts.here import run_here
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.errors import UserError
from vlm_detect.generate import receipts
from vlm_detect.generate.receipts import render_row
from vlm_detect.images.decode import decode_image
from vlm_detect.images.encode import describe_jpeg, encode_image, read_jpeg


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos with caption and VAE twins, in batches of three, and edits; half of the photos are JPEGs."""
    folder = tmp_path_factory.mktemp("receipts")
    write_captioned(folder / "photos")
    return make(folder, "pairs", "--captioner", "column", "--twins", "caption,vae,edit", "--size", 40)


def write_captioned(photos: Path) -> None:
    photos.mkdir()
    lines = ["file_name,caption"]
    for i in range(8):
        name = f"photo{i}.{'jpg' if i % 2 else 'png'}"
        textured(i, (48, 40)).save(photos / name, **({"quality": 70 + i} if i % 2 else {}))
        lines.append(f"{name},a thing of kind {i}")
    (photos / "metadata.csv").write_text("\n".join(lines) + "\n")


def make(folder: Path, name: str, *more: object) -> Path:
    generator = folder / "sd3" if (folder / "sd3").exists() else save_tiny_pipeline(folder / "sd3")
    arguments = ["--generator", generator, "--steps", 2, "--guidance", 2, "--max_sequence_length", 8]
    arguments += ["--render_size", 32, "--render_batch", 3, "--out", folder / name]
    done = run_here("data_gen/make_pairs.py", "--images", folder / "photos", *arguments, *more)
    assert done.returncode == 0, done.stderr
    return folder / name


def rows(pairs: Path) -> list[dict[str, Any]]:
    tables = [
        pq.read_table(path, columns=["pair_id", "kind", "edit", "source", "receipt"])
        for path in sorted(pairs.glob("data/*.parquet"))
    ]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("kind", ["caption", "vae"])
def test_a_row_rendered_alone_has_the_same_bytes(pairs: Path, tmp_path: Path, kind: str) -> None:
    of_kind = [row for row in rows(pairs) if row["kind"] == kind]
    assert {row["receipt"]["batch"] for row in of_kind} == {"0/3", "1/3", "2/3", "0/2", "1/2"}
    for batch in ("0/3", "2/3", "1/2"):
        row = next(row for row in of_kind if row["receipt"]["batch"] == batch)
        done = run_here("data_gen/render.py", "--row", row["pair_id"], "--pairs", pairs, "--out", tmp_path / "twin.jpg")
        assert done.returncode == 0, done.stderr
        assert "the same bytes as in" in done.stdout


def test_equal_pixels_in_other_bytes_are_reported(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of an encoder writes them."""
    monkeypatch.setattr(receipts, "encode_image", lambda image, config: encode_image(image, config) + b"\0")
    row = next(row for row in rows(pairs) if row["kind"] == "vae")
    assert "the same pixels as in" in render_row(pairs, row["pair_id"], tmp_path / "twin.jpg")


@pytest.mark.parametrize("of", ["photo", "caption"])
def test_an_edit_made_alone_has_the_same_bytes(pairs: Path, tmp_path: Path, of: str) -> None:
    by_operation = {row["edit"]["operation"]: row for row in rows(pairs) if row["edit"] and row["edit"]["of"] == of}
    assert {"splice", "inpaint"} < by_operation.keys()
    assert len(by_operation) >= 5
    assert {row["edit"]["attempt"] for row in rows(pairs) if row["edit"]} > {0}  # first draws and later ones
    for row in by_operation.values():
        assert "the same bytes as in" in render_row(pairs, row["pair_id"], tmp_path / "twin.jpg"), row["edit"]


def test_a_splice_finds_its_donor_where_it_was_left_out(pairs: Path, tmp_path: Path) -> None:
    splice = next(row for row in rows(pairs) if row["edit"] and row["edit"]["donor"])
    donor = next(row["source"] for row in rows(pairs) if row["source"]["sha256"].startswith(splice["edit"]["donor"]))
    shutil.copytree(pairs, tmp_path / "pairs")
    for path in (tmp_path / "pairs").glob("data/*.parquet"):
        kept = [row for row in pq.read_table(path).to_pylist() if row["source"]["sha256"] != donor["sha256"]]
        pq.write_table(pa.Table.from_pylist(kept, schema=PAIR_FEATURES.arrow_schema), path)
    with pytest.raises(UserError, match=r"not in the dataset; give it with --donor FILE"):
        render_row(tmp_path / "pairs", splice["pair_id"], tmp_path / "twin.jpg")
    message = render_row(tmp_path / "pairs", splice["pair_id"], tmp_path / "twin.jpg", donor=donor["path_or_id"])
    assert "the same bytes" in message


def test_a_prompted_image_is_rendered_again(tmp_path: Path) -> None:
    write_captioned(tmp_path / "photos")
    (tmp_path / "prompts.yaml").write_text('base: "a {what}"\nmodifiers: {what: [cat, dog, ship, car]}')
    prompted = make(tmp_path, "prompted", "--prompts", tmp_path / "prompts.yaml")
    table = [row for path in prompted.glob("data/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in table}) == len(table) == 16
    rendered = {row["receipt"]["batch"]: row for row in table if row["label"] == "generated"}
    assert rendered.keys() == {"0/3", "1/3", "2/3", "0/2", "1/2"}
    for row in rendered.values():
        assert "the same bytes as in" in render_row(prompted, row["id"], tmp_path / "image.jpg")
    real = next(row for row in table if row["label"] == "real")
    with pytest.raises(UserError, match="a photo, which was not rendered"):
        render_row(prompted, real["id"], tmp_path / "image.jpg")


def test_missing_inputs_of_a_row_are_reported(pairs: Path, tmp_path: Path) -> None:
    vae = next(row for row in rows(pairs) if row["kind"] == "vae")
    Image.new("RGB", (48, 40)).save(tmp_path / "other.png")
    arguments = ["data_gen/render.py", "--pairs", pairs, "--out", tmp_path / "twin.jpg", "--row"]
    for row, photo_file, says in (
        ("none", "", "no row of"),
        (vae["pair_id"], tmp_path / "other.png", "its SHA-256 is another"),
        (vae["pair_id"], tmp_path / "gone.png", "the source photo is missing"),
    ):
        done = run_here(*arguments, row, *(["--photo", photo_file] if photo_file else []))
        assert done.returncode == 1
        assert says in done.stderr


def test_a_jpegs_history_is_described_and_parsed_back(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.jpg", quality=83, subsampling=0)
    standard = decode_image(tmp_path / "a.jpg").jpeg
    assert standard is not None
    assert describe_jpeg(standard) == {"quality": 83, "subsampling": 0}
    own = replace(standard, tables=tuple(tuple(value + 1 for value in table) for table in standard.tables))
    for jpeg in (standard, own, None):
        assert read_jpeg(describe_jpeg(jpeg)) == jpeg


def test_a_dry_run_prints_the_cost_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        photo(i).save(tmp_path / "photos" / f"{i}.png")
    done = run_here(
        "data_gen/make_pairs.py", "--images", tmp_path / "photos", "--generator", "nano", "--captioner", "nano",
        "--out", tmp_path / "pairs", "--dry_run", "True", "--shard_size", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 photos in 2 shards" in done.stdout
    assert "3 caption, 3 vae, by nano" in done.stdout
    assert "36 steps, 72 passes of the denoiser" in done.stdout
    assert "free there" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
