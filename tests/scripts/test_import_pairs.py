"""Pairs rendered elsewhere, and images rendered from prompts, as a user makes datasets of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo, save_tiny_pipeline
from tests.scripts.here import run_here
from vlm_detect.columns import PAIR_FEATURES, PROMPTED_FEATURES
from vlm_detect.images.decode import decode_image

PROGRAM = "data_gen/import_pairs.py"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("data/*")) for row in pq.read_table(file).to_pylist()]


def make_pairs(root: Path, count: int = 8) -> None:
    for i in range(count):
        for name, seed, size, options in (
            ("real", i, (64, 48), {"quality": 60}),
            ("twins", 100 + i, (40, 32), {"quality": 95}),
        ):
            (root / name / "sub").mkdir(parents=True, exist_ok=True)
            suffix = "png" if name == "twins" and i % 2 else "jpg"
            photo(seed, size).save(root / name / "sub" / f"{i}.{suffix}", **(options if suffix == "jpg" else {}))


def test_two_folders_become_a_pair_dataset(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    (tmp_path / "real" / "alone.png").write_bytes((tmp_path / "real" / "sub" / "0.jpg").read_bytes())
    (tmp_path / "twins" / "sub" / "1.png").write_bytes(b"broken")
    Image.new("RGB", (40, 32), "red").save(tmp_path / "twins" / "sub" / "3.png")
    photo(7, (20, 60)).save(tmp_path / "twins" / "sub" / "5.png")
    photo(8, (80, 64)).save(tmp_path / "twins" / "sub" / "7.png")
    arguments = [tmp_path / "real", tmp_path / "twins", "--out", tmp_path / "out", "--generator", "other-1"]
    done = run_here(PROGRAM, *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 pairs" in done.stdout
    assert "real: skipped 1 images without a counterpart, such as alone" in done.stderr
    assert pq.read_schema(next((tmp_path / "out" / "data").iterdir())).equals(PAIR_FEATURES.arrow_schema)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert sorted(r["reason"] for r in rejects) == ["another_aspect", "blank", "not_an_image", "too_small"]
    for row in rows_of(tmp_path / "out"):
        members = [decode_image(row[name]["bytes"]) for name in ("image", "twin")]
        assert members[0].image.size == members[1].image.size == (40, 32)
        assert members[0].jpeg == members[1].jpeg
        assert (row["generator"], row["kind"], row["image_label"]) == ("other-1", "caption", "real")
        assert json.loads(row["receipt"]["encode"])["twin_first"] == "jpeg 60 at 60x48"
    again = run_here(PROGRAM, *arguments)
    assert (again.returncode, "nothing left to do" in again.stdout) == (0, True)


def test_a_csv_adds_columns_and_a_photo_may_have_several_twins(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    lines = ["real,twin,generator,kind,caption,seed"]
    for i in range(8):
        twin = f"twins/sub/{i}.{'png' if i % 2 else 'jpg'}"
        other = f"twins/sub/{(i + 1) % 8}.{'jpg' if i % 2 else 'png'}"
        lines += [f"real/sub/{i}.jpg,{twin},sd35,caption,thing {i},{i}", f"real/sub/{i}.jpg,{other},flux,vae,,"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    done = run_here(PROGRAM, tmp_path / "pairs.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len({row["pair_id"] for row in rows}) == 16
    assert len({row["group"] for row in rows}) == 8
    assert {(row["generator"], row["kind"], row["seed"] is None) for row in rows} == {
        ("sd35", "caption", False),
        ("flux", "vae", True),
    }


def test_two_images_of_one_name_are_reported(tmp_path: Path) -> None:
    for name in ("real/0.png", "twins/0.png", "twins/0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(0).save(tmp_path / name)
    done = run_here(PROGRAM, tmp_path / "real", tmp_path / "twins", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "0.jpg and 0.png have the same name" in done.stderr


def test_a_generator_is_held_out_with_its_photos(tmp_path: Path) -> None:
    make_pairs(tmp_path, 10)
    lines = ["real,twin,generator"]
    for i in range(10):
        twin = f"twins/sub/{i}.{'png' if i % 2 else 'jpg'}"
        lines += [f"real/sub/{i}.jpg,{twin},{'flux' if i < 4 else 'sd35'}"]
    lines += [f"real/sub/0.jpg,{'twins/sub/9.png'},sd35"]  # of a photo that flux drew as well
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    done = run_here(PROGRAM, tmp_path / "pairs.csv", "--out", tmp_path / "out", "--hold_out", "generator=flux")
    assert done.returncode == 0, done.stderr
    unseen = pq.read_table(next((tmp_path / "out" / "data").glob("unseen-*"))).to_pylist()
    assert sorted(row["generator"] for row in unseen) == ["flux"] * 4 + ["sd35"]
    others = [row for row in rows_of(tmp_path / "out") if row["group"] not in {row["group"] for row in unseen}]
    assert [row["generator"] for row in others] == ["sd35"] * 6
    for rule, says in (("generator=*", "no pair matches"), ("source=*", "that is every photo")):
        done = run_here(PROGRAM, tmp_path / "pairs.csv", "--out", tmp_path / "none", "--hold_out", rule)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert says in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n", "needs rows with the columns real and twin (it has a, b)"),
        ("", "it has no rows"),
        ("real,twin,kind\na,b,edit\n", "line 2: kind edit is neither caption nor vae"),
        ("real,twin,seed\na,b,-1\n", "line 2: seed -1 is not an integer"),
        (f"real,twin,seed\na,b,{2**63}\n", f"line 2: seed {2**63} is not an integer"),
        ("\ufeffreal,twin\na.png\n", "line 2: a pair needs real and twin"),
        ("real,twin\n,b.png\n", "line 2: a pair needs real and twin"),
    ],
)
def test_a_bad_csv_is_one_clear_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    done = run_here(PROGRAM, tmp_path / "pairs.csv", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert says in done.stderr


def test_the_two_folders_must_differ(tmp_path: Path) -> None:
    done = run_here(PROGRAM, tmp_path, tmp_path, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "given for the photos and for the twins" in done.stderr


def test_prompts_make_an_image_dataset_without_pairs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(8):
        photo(i, (48, 40)).save(tmp_path / "photos" / f"{i}.jpg", quality=70)
    (tmp_path / "prompts.yaml").write_text(
        'base: "{what} {where}"\nmodifiers: {what: [a cat, a dog], where: [here, there]}'
    )
    generator = save_tiny_pipeline(tmp_path / "sd3")
    settings = ["--generator", generator, "--steps", 2, "--max_sequence_length", 8]
    arguments = ["--images", tmp_path / "photos", "--prompts", tmp_path / "prompts.yaml", *settings]
    done = run_here("data_gen/make_pairs.py", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "16 images" in done.stdout
    rows = rows_of(tmp_path / "out")
    assert pq.read_schema(next((tmp_path / "out" / "data").iterdir())).equals(PROMPTED_FEATURES.arrow_schema)
    assert [row["label"] for row in rows].count("real") == 8
    rendered = [row for row in rows if row["label"] == "generated"]
    assert len({row["source"]["path_or_id"] for row in rendered}) == 8
    assert all(row["source"]["path_or_id"].startswith("prompt: a ") for row in rendered)
    sizes = {np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).shape for row in rows}
    assert len(sizes) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No image is a photo's twin" in card
