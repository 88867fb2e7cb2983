"""Data name files of their own folder and no others, however they spell it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tests.benchmark.fakes import verdict_rows, write_benchmark, write_image
from vlm_detect.benchmark.dataset_items import load_split
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.data.audit import samples
from vlm_detect.data.dataset_rows import open_all_splits
from vlm_detect.data.named_files import find_file, why_not_found
from vlm_detect.errors import LOCAL_PATHS_ALLOWED, UserError, run_main
from vlm_detect.generate.import_options import PairSetConfig
from vlm_detect.generate.pair_sets import list_pairs
from vlm_detect.images import local_files
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.local_files import may_name, read_named
from vlm_detect.images.stored import StoredImage
from vlm_detect.train.conversations import read_conversations


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LOCAL_PATHS_ALLOWED, raising=False)
    monkeypatch.setenv(local_files._FOLDERS, "[]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return write_image(tmp_path / "home" / "secret.png", "red")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "images").mkdir(parents=True)
    write_image(tmp_path / "set" / "images" / "own.png", "blue")
    return tmp_path / "set"


def spellings(secret: Path, folder: Path) -> list[str]:
    """Names by which a file outside of a folder can be meant."""
    (folder / "images" / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(secret.parent)
    return [
        str(secret),
        f"file://{secret}",
        "../home/secret.png",
        "images/../../home/secret.png",
        f"{folder}/../home/secret.png",
        "images/link.png",
        "up/secret.png",
    ]


def test_a_list_may_name_files_of_its_own_folder(secret: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in spellings(secret, folder):
        assert find_file(folder, name) is None, name
        assert "is outside" in why_not_found(folder, name)
    own = folder / "images" / "own.png"
    for name in ("images/own.png", str(own), "C:\\\\data\\\\images\\\\own.png", "/elsewhere/images/own.png", "own.png"):
        assert find_file(own.parent if name == "own.png" else folder, name) == own
    assert "is missing" in why_not_found(folder, "none.png")
    monkeypatch.setenv(LOCAL_PATHS_ALLOWED, "1")
    assert find_file(folder, str(secret)) == secret


def test_a_path_outside_is_refused_although_an_image_of_that_name_is_inside(secret: Path, folder: Path) -> None:
    own = write_image(folder / "secret.png", "blue")
    assert find_file(folder, str(secret)) == own


def test_rows_name_files_of_folders_that_were_opened(
    secret: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folder / "images" / "own.png"
    for name in (*spellings(secret, folder), str(own)):
        with pytest.raises(ImageRejected):
            read_named(name)
    may_name(folder)
    assert read_named(str(own)) == read_named("images/own.png") == own.read_bytes()
    for name in spellings_again(folder, secret):
        with pytest.raises(ImageRejected):
            read_named(name)
    with pytest.raises(ImageRejected, match=r"[Nn]o such file"):
        read_named("none.png")
    for name in ("a\0b", ""):
        with pytest.raises(ImageRejected):
            read_named(name)
    monkeypatch.setenv(LOCAL_PATHS_ALLOWED, "1")
    assert read_named(str(secret)) == secret.read_bytes()


def spellings_again(folder: Path, secret: Path) -> list[str]:
    return [str(secret), "../home/secret.png", f"{folder}/images/link.png", "images/link.png", "up/secret.png"]


def test_workers_know_the_permitted_folders(folder: Path) -> None:
    may_name(folder)
    own = folder / "images" / "own.png"
    code = f"from vlm_detect.images.local_files import read_named; print(len(read_named({str(own)!r})))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == own.stat().st_size


def test_every_reader_of_data_refuses_files_outside(
    secret: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
    named |= {"group": datasets.Value("string"), "object_class": datasets.Value("string")}
    named |= {"generator": datasets.Value("string")}
    (folder / "data").mkdir()
    own = str(folder / "images" / "own.png")
    facts = {"object_class": "", "generator": "real", "label": "real"}
    rows = [{"image": {"bytes": None, "path": path}, "group": path, **facts} for path in (own, str(secret))]
    datasets.Dataset.from_list(rows, features=datasets.Features(named)).to_parquet(folder / "data/test-0.parquet")

    (opened,) = open_all_splits(str(folder), streaming=True).values()
    first, second = [found for _, found in opened.images([0, 1])]
    assert first == Path(own).read_bytes()
    assert isinstance(second, ImageRejected)
    assert second.reason == "outside"

    split = load_split(folder, "test")
    assert StoredImage.from_cell(split[0]["image"]).content == Path(own).read_bytes()
    with pytest.raises(ImageRejected, match="--allow_local_paths reads it"):
        _ = StoredImage.from_cell(split[1]["image"]).content

    read = samples.read_samples(folder, 10)
    assert ([sample.data for sample in read.samples], read.unread["real"]) == ([Path(own).read_bytes()], 1)

    benchmark = write_benchmark(folder, [{**verdict_rows(folder)[0], "image": str(secret)}])
    with pytest.raises(UserError, match=r"is outside of .*--allow_local_paths"):
        load_benchmark(benchmark)

    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    talks = folder / "talks.json"
    talks.write_text(json.dumps([{"id": "1", "image": str(secret), "conversations": turns}]))
    with pytest.raises(UserError, match="is outside of"):
        read_conversations(str(talks))

    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["real", "twin"], [own, secret]])
    with pytest.raises(UserError, match=r"line 2: .*is outside of"):
        list_pairs([str(folder / "pairs.csv")], PairSetConfig())

    monkeypatch.setenv(LOCAL_PATHS_ALLOWED, "1")
    assert len(load_benchmark(benchmark).items) == len(read_conversations(str(talks))[0]) == 1
    assert StoredImage.from_cell(split[1]["image"]).content == secret.read_bytes()


def test_every_program_has_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    for argv, allowed in ((["scan", "x"], None), (["scan", "--allow_local_paths", "x"], "1")):
        monkeypatch.setattr(sys, "argv", ["vlm-detect", *argv])
        with pytest.raises(SystemExit, match="0"):
            run_main(got.append)
        assert os.environ.get(LOCAL_PATHS_ALLOWED) == allowed
    assert got == [["scan", "x"]] * 2
    os.environ.pop(LOCAL_PATHS_ALLOWED)
