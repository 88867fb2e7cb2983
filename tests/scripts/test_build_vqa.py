"""`eval/build_vqa.py` as a user runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmark.test_dataset_items import pair, write_pairs
from tests.progressed import progress_of
from tests.scripts.here import run_here
from vlm_detect.benchmark import benchmark_file
from vlm_detect.benchmark.items import load_benchmark

COLOURS = ["red", "green", "blue", "pink", "gray", "cyan", "gold", "navy"]
SMALL = ("--n_true_false", 8, "--n_multiple_choice", 8, "--n_attribution", 4, "--n_which_of_two", 4, "--n_open", 4)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [pair(i, COLOURS[2 * i], COLOURS[2 * i + 1]) for i in range(4)]
    return write_pairs(tmp_path / "pairs", rows)


def test_a_built_benchmark_can_be_read_and_checked(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "vqa" / "b.json"
    built = run_here("eval/build_vqa.py", dataset, "--out", out, *SMALL)
    assert built.returncode == 0, built.stderr
    benchmark = load_benchmark(out)
    assert len(benchmark.items) == 8 + 8 + 4 + 4 + 4
    for item in benchmark.items:
        for path in item.images:
            with Image.open(path) as image:
                assert image.format == "JPEG"  # one encoding for all
    names = {Path(path).stem for item in benchmark.items for path in item.images}
    assert all(len(name) == 20 and set(name) <= set("0123456789abcdef") for name in names)

    checked = run_here("eval/build_vqa.py", "--check", out, "--json")
    floors = json.loads(checked.stdout)
    assert floors["by_kind"]["multiple_choice"]["longest"] == 0.25
    assert floors["by_kind"]["true_false"]["commonest_answer"] == 0.5
    assert set(floors["floors"]) >= {"longest", "shortest", "commonest_letter", "bag_of_words"}
    assert "bag_of_words" in run_here("eval/build_vqa.py", "--check", out).stdout


def test_the_images_are_counted_as_they_are_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = progress_of(benchmark_file, monkeypatch)
    run_here("eval/build_vqa.py", dataset, "--out", tmp_path / "b.json", *SMALL)
    assert shown == [("write images", 28)]


def test_the_same_seed_builds_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_here("eval/build_vqa.py", dataset, "--out", tmp_path / name / "b.json", *SMALL)
    assert (tmp_path / "one" / "b.json").read_bytes() == (tmp_path / "two" / "b.json").read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").rglob("*.jpg")) == sorted(
        p.name for p in (tmp_path / "two").rglob("*.jpg")
    )


def test_a_benchmark_in_the_datasets_folder_does_not_change_its_record(dataset: Path) -> None:
    (dataset / "run.json").write_text("the dataset's")
    assert run_here("eval/build_vqa.py", dataset, "--out", dataset / "b.json", *SMALL).returncode == 0
    assert (dataset / "run.json").read_text() == "the dataset's"
    assert json.loads((dataset / "b_images" / "run.json").read_text())["items"]["true_false"] == 8


def test_bad_input(dataset: Path, tmp_path: Path) -> None:
    assert run_here("eval/build_vqa.py").returncode == 2
    assert run_here("eval/build_vqa.py", dataset).returncode == 2
    missing = run_here("eval/build_vqa.py", tmp_path / "nothing", "--out", tmp_path / "b.json")
    assert (missing.returncode, "no such dataset" in missing.stderr) == (1, True)
    split = run_here("eval/build_vqa.py", dataset, "--out", tmp_path / "b.json", "--split", "validation")
    assert (split.returncode, "it has test" in split.stderr) == (1, True)
    few = run_here("eval/build_vqa.py", dataset, "--out", tmp_path / "b.json", "--n_open", -1)
    assert (few.returncode, "--n_open -1: give 0 or more" in few.stderr) == (2, True)
    assert not (tmp_path / "b.json").exists()
