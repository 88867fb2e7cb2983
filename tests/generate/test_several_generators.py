"""One dataset by several generators: each renders its share of the photos, so that one of them can be held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from tests.data.factories import save_tiny_pipeline, write_photos
from tests.generate.test_edits import textured
from tests.scripts.here import run_here
from vlm_detect.config import read_run_json
from vlm_detect.generate import dataset_files
from vlm_detect.generate.choices import Share
from vlm_detect.generate.receipts import render_row

SETTINGS = ["--steps", 2, "--guidance", 2, "--max_sequence_length", 8, "--render_size", 32, "--render_batch", 6]


@pytest.fixture(scope="module", autouse=True)
def no_audit() -> Iterator[None]:
    """The audit, which has tests of its own, takes most of the time."""
    with mock.patch.object(dataset_files, "write_audit"):
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with captions, a broken one among them, and two generators."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "photos").mkdir()
    photos = [folder / "photos" / f"photo{i:02d}.png" for i in range(12)]
    for i, path in enumerate(photos):
        textured(i, (48, 40)).save(path)
    (folder / "photos" / "broken.png").write_bytes(photos[0].read_bytes()[:60])
    lines = ["file_name,caption", *(f"{path.name},a thing of kind {i}" for i, path in enumerate(photos))]
    (folder / "photos" / "metadata.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(("one", "two")):
        save_tiny_pipeline(folder / name, seed)
    return folder


def make_pairs(work: Path, out: Path, *more: object) -> Any:
    arguments = ["--images", work / "photos", "--captioner", "column", *SETTINGS, "--out", out, *more]
    return run_here("data_gen/make_pairs.py", *arguments)


@pytest.fixture(scope="module")
def pairs(work: Path) -> Path:
    generators = ["--generators", work / "one", work / "two", "--hold_out", f"generator={work / 'two'}"]
    done = make_pairs(work, work / "pairs", *generators, "--twins", "caption,vae,edit", "--edits_on", "twins")
    assert done.returncode == 0, done.stderr
    assert f"for share 2/2 of the photos, by {work / 'two'} ..." in done.stdout
    return work / "pairs"


def rows(pairs: Path) -> list[dict[str, Any]]:
    return [
        row | {"split": path.name.split("-")[0]}
        for path in sorted((pairs / "data").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def test_each_photo_has_one_generator_and_the_held_out_one_is_unseen(work: Path, pairs: Path) -> None:
    by_photo: dict[str, set[str]] = {}
    for row in rows(pairs):
        by_photo.setdefault(row["source"]["path_or_id"], set()).add(row["generator"])
    assert len(by_photo) == 12
    assert all(len(generators) == 1 for generators in by_photo.values())
    splits: dict[str, set[str]] = {}
    for row in rows(pairs):
        splits.setdefault(row["generator"], set()).add(row["split"])
    assert splits == {str(work / "one"): {"train", "validation", "test"}, str(work / "two"): {"unseen"}}


def test_a_reject_of_the_captions_is_recorded_once(pairs: Path) -> None:
    assert [row["id"][-10:] for row in pq.read_table(pairs / "rejects.parquet").to_pylist()] == ["broken.png"]


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("kind", ["caption", "edit"])
def test_a_row_is_rendered_again_by_its_own_generator(
    work: Path, pairs: Path, tmp_path: Path, name: str, kind: str
) -> None:
    row = next(row for row in rows(pairs) if row["generator"] == str(work / name) and row["kind"] == kind)
    assert "the same bytes as in" in render_row(pairs, row["pair_id"], tmp_path / "twin.jpg")


def test_the_same_command_is_finished_and_other_generators_are_not(work: Path, pairs: Path) -> None:
    same = ["--generators", work / "one", work / "two", "--hold_out", f"generator={work / 'two'}"]
    same += ["--twins", "caption,vae,edit", "--edits_on", "twins"]
    assert "finished, nothing left to do" in make_pairs(work, pairs, *same).stdout
    other = make_pairs(work, pairs, "--generators", work / "two", work / "one", *same[3:])
    assert other.returncode == 1
    assert "renders was" in other.stderr
    dry = make_pairs(work, work / "other", *same, "--dry_run")
    assert "renders_2: 1 of 1 shards to run" in dry.stdout
    assert dry.stdout.count("twins: 6 caption, 6 vae, 6 edit") == 2


def test_steps_of_one_photo_by_several_generators_are_packed_together(work: Path, tmp_path: Path) -> None:
    """Every photo has the twins of both generators, in one split."""
    captions = ["--images", work / "photos", "--captioner", "column", "--out", tmp_path / "captions"]
    assert run_here("data_gen/caption.py", *captions).returncode == 0
    for name in ("one", "two"):
        render = ["--captions", tmp_path / "captions", "--out", tmp_path / name, "--generator", work / name, *SETTINGS]
        assert run_here("data_gen/render.py", *render, "--twins", "vae").returncode == 0
    pack = ["--renders", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "pairs"]
    refused = run_here("data_gen/pack.py", *pack, "--hold_out", f"generator={work / 'two'}")
    assert refused.returncode == 1
    assert "give each generator a share of the photos" in refused.stderr
    twice = run_here("data_gen/pack.py", "--renders", tmp_path / "one", tmp_path / "one")
    assert twice.returncode == 2
    assert f"--renders {tmp_path / 'one'}: given twice" in twice.stderr
    packed = run_here("data_gen/pack.py", *pack)
    assert packed.returncode == 0, packed.stderr
    made = rows(tmp_path / "pairs")
    assert Counter(row["generator"] for row in made) == {str(work / "one"): 12, str(work / "two"): 12}
    assert len({row["pair_id"] for row in made}) == 24
    splits: dict[str, set[str]] = {}
    for row in made:
        splits.setdefault(row["source"]["path_or_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert "rejected: 1" in packed.stdout


def test_equal_photos_in_two_shares_are_written_once(work: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 6)
    lines = ["file_name,caption", *(f"{path.name},a thing" for path in photos)]
    for i in range(8):  # of one group each: some lie in the other share than the photo that they repeat
        (tmp_path / "photos" / f"z{i}.png").write_bytes(photos[0].read_bytes())
        lines.append(f"z{i}.png,a thing")
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(lines) + "\n")
    arguments = ["--images", tmp_path / "photos", "--captioner", "column", *SETTINGS, "--out", tmp_path / "pairs"]
    done = run_here("data_gen/make_pairs.py", *arguments, "--generators", work / "one", work / "two", "--twins", "vae")
    assert done.returncode == 0, done.stderr
    made = rows(tmp_path / "pairs")
    assert Counter(row["source"]["sha256"] for row in made).most_common(1)[0][1] == 1
    assert sum((read_run_json(tmp_path / "pairs") or {})["rejects"].values()) == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--generators", "a", "a"], "--generators a: given twice"),
        (["--generators", "a", "b", "--generator", "c"], "--generator c: cannot be combined with --generators"),
        (["--generators", "a", "b", "--share", "1/2"], "--share 1/2: cannot be combined with --generators"),
        (["--share", "3/2"], "3/2: give K/N with K from 1 to N"),
        (["--share", "half"], "half: give K/N with K from 1 to N"),
    ],
)
def test_flags_that_contradict_each_other_are_wrong_arguments(
    work: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    done = make_pairs(work, tmp_path / "pairs", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "pairs.work").exists()


def test_shares_divide_the_groups() -> None:
    groups = [f"group {i}" for i in range(3000)]
    held = [{group for group in groups if Share(f"{k}/3").has(group)} for k in (1, 2, 3)]
    assert set.union(*held) == set(groups)
    assert sum(map(len, held)) == 3000
    assert all(900 < len(one) < 1100 for one in held)
    assert all(Share().has(group) for group in groups)
    assert json.dumps(Share("1/3")) == '"1/3"'
