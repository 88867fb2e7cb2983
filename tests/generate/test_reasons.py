"""`data_gen/reasons.py` as a user runs it: a finished dataset in, the same with reasons out."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.measures.factories import natural, noisy
from tests.scripts.here import run_here
from vlm_detect.columns import IMAGE_FEATURES, PAIR_FEATURES
from vlm_detect.config import read_run_json, write_run_json
from vlm_detect.data.members import open_members
from vlm_detect.data.pairs import open_dataset
from vlm_detect.generate import measure_step
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.measures.claims import check_claim, read_claim
from vlm_detect.measures.registry import measure_image
from vlm_detect.records import Reason

PROGRAM = "data_gen/reasons.py"
SPLITS = {"train": 60, "validation": 6, "test": 14}  # photos, each with a generated image next to it


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def picture(seed: int, *, generated: bool, side: int = 48) -> bytes:
    """Generated ones have less noise, by an amount of their own."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.002, 0.02) if generated else rng.uniform(0.012, 0.04)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(noisy(natural(seed, side), sigma, seed) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def cell(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def write(folder: Path, features: datasets.Features, rows: dict[str, list[dict[str, Any]]]) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, some in rows.items():
        table = pa.Table.from_pylist(some, schema=features.arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("# A card\n\nWhat it is.\n\n## Audit\n\nNothing.\n")
    (folder / "LICENCE").write_text("CC0")
    write_run_json(folder, {"settings": {"src": "somewhere"}})
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and generated images, one file that is none, one that is too small and one of an unusual size."""
    rows: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for split, count in SPLITS.items():
        for _ in range(count):
            number += 1
            for label in ("real", "generated"):
                content = picture(2 * number + (label == "real"), generated=label == "generated")
                rows.setdefault(split, []).append(image_row(number, label, content))
    rows["test"][3]["image"] = cell(b"no image")
    rows["test"][4]["image"] = cell(picture(900, generated=False, side=12))
    rows["test"][5]["image"] = cell(picture(901, generated=True, side=200))
    return write(tmp_path_factory.mktemp("images") / "set", IMAGE_FEATURES, rows)


def image_row(number: int, label: str, content: bytes) -> dict[str, Any]:
    source = dict.fromkeys(IMAGE_FEATURES["source"]) | {"path_or_id": f"{number} {label}"}
    row = dict.fromkeys(IMAGE_FEATURES) | {"image": cell(content), "label": label, "group": f"photo {number}"}
    return row | {"source": source, "object_class": "thing"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each photo with a caption twin and an edit."""
    rows: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for split, count in SPLITS.items():
        for _ in range(count):
            number += 1
            photo = cell(picture(2 * number + 1, generated=False))
            shared = dict.fromkeys(PAIR_FEATURES) | {"group": f"photo {number}", "image": photo, "image_label": "real"}
            twin = cell(picture(2 * number, generated=True))
            rows.setdefault(split, []).append(shared | {"pair_id": f"{number}c", "kind": "caption", "twin": twin})
            edit = dict.fromkeys(PAIR_FEATURES["edit"]) | {"of": "photo", "operation": "blur", "box": [0, 0, 16, 16]}
            edited = cell(picture(5000 + number, generated=False))
            rows[split].append(shared | {"pair_id": f"{number}e", "kind": "edit", "twin": edited, "edit": edit})
    return write(tmp_path_factory.mktemp("pairs") / "set", PAIR_FEATURES, rows)


def add(dataset: Path, out: Path, *more: object, status: int = 0, audited: bool = False) -> str:
    """What the program prints; `audited` once, for it takes the longest."""
    with mock.patch("vlm_detect.generate.dataset_files.write_audit") if not audited else contextlib.nullcontext():
        done = run_here(PROGRAM, dataset, "--out", out, "--shard_size", 40, *more)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def with_reasons(images: Path) -> Path:
    add(images, images.parent / "out", audited=True)
    return images.parent / "out"


def reasons_of(folder: Path, split: str, column: str = "reasons") -> list[list[Reason]]:
    return [[Reason.from_row(one) for one in cell] for cell in open_dataset(folder)[split][column]]


def test_the_rows_are_unchanged_except_for_reasons(images: Path, with_reasons: Path) -> None:
    for split in SPLITS:
        before, after = (pq.read_table(next(folder.glob(f"data/{split}-*"))) for folder in (images, with_reasons))
        assert after.drop_columns("reasons").to_pylist() == before.to_pylist()
    opened = open_dataset(with_reasons)
    assert {name: feature for name, feature in opened["train"].features.items() if name != "reasons"} == IMAGE_FEATURES
    assert opened["train"][0]["image"].size == (48, 48)
    names = {"README.md", "LICENCE", "audit.json", "data", "measures.json", "rejects.parquet", "run.json"}
    assert {path.name for path in with_reasons.iterdir()} == names
    assert not with_reasons.with_name("out.work").exists()


def test_reasons_are_true_and_support_the_label(with_reasons: Path) -> None:
    calibration = MeasureCalibration.load(with_reasons)
    assert calibration is not None
    assert calibration.images == {"real": 60, "generated": 60}  # the training split's alone
    assert "noise_strength" in calibration.informative
    spoken = 0
    for row in open_dataset(with_reasons)["train"]:
        measured = measure_image(np.asarray(row["image"]))
        for reason in map(Reason.from_row, row["reasons"]):
            claim = read_claim(reason.text)
            assert claim is not None
            assert claim.measure == reason.checked_by
            assert check_claim(claim, measured, calibration).status == "confirmed"
            assert (reason.supports, reason.source) == (row["label"], "measured")
            spoken += 1
    assert spoken > 120


def test_the_card_and_the_record_describe_the_reasons(images: Path, with_reasons: Path) -> None:
    card = (with_reasons / "README.md").read_text()
    assert card.startswith("# A card\n\nWhat it is.\n")
    assert card.count("## Reasons") == card.count("## Audit") == 1
    assert "Calibrated on: 60 real, 60 generated images of the training split" in card
    assert "noise_strength" in card
    config = read_run_json(with_reasons)["config"]
    assert config["settings"] == {"src": "somewhere"}  # how the dataset was made
    assert config["reasons"]["reasons"] == "measured"


def test_unmeasurable_images_are_reported_and_have_no_reasons(with_reasons: Path) -> None:
    rejects = {row["id"]: row for row in pq.read_table(with_reasons / "rejects.parquet").to_pylist()}
    found = {name: (row["stage"], row["reason"]) for name, row in rejects.items()}
    assert found == {
        "68 generated": ("measures", "not_an_image"),
        "69 real": ("measures", "too_small"),
        "69 generated": ("measured", "unusual_size"),
    }
    assert reasons_of(with_reasons, "test")[3:6] == [[], [], []]
    assert "200x200" in rejects["69 generated"]["detail"]


def test_pairs_have_reasons_for_both_members(pairs: Path, tmp_path: Path) -> None:
    add(pairs, tmp_path / "out")
    opened = open_dataset(tmp_path / "out")["train"]
    assert not any((tmp_path / "out" / name).exists() for name in ("reasons",))
    sources = set()
    for row in opened:
        image, twin = ([Reason.from_row(one) for one in row[f"{member}_reasons"]] for member in ("image", "twin"))
        assert all((one.supports, one.source) == ("real", "measured") for one in image)
        if row["kind"] == "edit":
            assert [(one.kind, one.supports) for one in twin] == [("operation", "edited"), ("place", "edited")]
            assert twin[1].box == (0, 0, 16, 16)
            assert "upper left" in twin[1].text
        else:
            assert all((one.supports, one.source) == ("generated", "measured") for one in twin)
        sources |= {one.source for one in [*image, *twin]}
    assert sources == {"measured", "edit"}
    of_photo = {}
    for row in opened:  # a photo has the same reasons next to each of its twins
        assert of_photo.setdefault(row["group"], row["image_reasons"]) == row["image_reasons"]
    assert MeasureCalibration.load(tmp_path / "out").images == {"real": 60, "generated": 60}  # each photo once


def test_output_does_not_depend_on_shards_or_workers(images: Path, with_reasons: Path, tmp_path: Path) -> None:
    for name, options in {"large": ["--shard_size", 500], "two": ["--workers", 2], "other": ["--seed", 1]}.items():
        add(images, tmp_path / name, *options)
    for split in SPLITS:
        first_bytes, *others = (
            next(folder.glob(f"data/{split}-*")).read_bytes()
            for folder in (with_reasons, tmp_path / "large", tmp_path / "two", tmp_path / "other")
        )
        assert [first_bytes == other for other in others] == [True, True, False]
    first, other = (
        [one for some in reasons_of(folder, "train") for one in some] for folder in (with_reasons, tmp_path / "other")
    )
    assert [one.text for one in first] != [one.text for one in other]
    assert [(one.percentile, one.checked_by) for one in first] == [(one.percentile, one.checked_by) for one in other]


@pytest.mark.parametrize("stopped_at", [50, 200])
def test_a_stopped_run_continues(images, with_reasons, tmp_path, monkeypatch, stopped_at):
    """Once while images are measured, once while reasons are found: 160 images are decoded in each pass."""
    decode, calls = measure_step.decode_image, []

    def stopping(content: bytes) -> Any:
        calls.append(content)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return decode(content)

    monkeypatch.setattr(measure_step, "decode_image", stopping)
    add(images, tmp_path / "out", status=130)
    assert not (tmp_path / "out").exists()
    add(images, tmp_path / "out")
    assert len(calls) < stopped_at + 318 - 30  # what was finished is not done again
    for split in SPLITS:
        made, whole = (next(folder.glob(f"data/{split}-*")) for folder in (tmp_path / "out", with_reasons))
        assert made.read_bytes() == whole.read_bytes()
    assert "nothing left to do" in add(images, tmp_path / "out")
    assert "was made with other settings" in add(images, tmp_path / "out", "--seed", 3, status=1)


def test_reasons_of_other_sources_are_kept(images: Path, with_reasons: Path, tmp_path: Path) -> None:
    """As those of a teacher, which another run brought."""
    folder = tmp_path / "set"
    shutil.copytree(with_reasons, folder)
    for path in folder.glob("data/*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            row["reasons"].append(Reason("It has six fingers.", "anatomy", "generated", "imported").to_row())
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    add(folder, tmp_path / "out", "--seed", 7)
    for before, after in zip(reasons_of(with_reasons, "train"), reasons_of(tmp_path / "out", "train"), strict=True):
        assert [one.checked_by for one in after] == [*(one.checked_by for one in before), ""]
        assert after[-1].source == "imported"
    assert (tmp_path / "out" / "README.md").read_text().count("## Reasons") == 1


def test_the_test_split_is_not_used_to_calibrate(images: Path, with_reasons: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(images, folder)
    path = next(folder.glob("data/test-*"))
    table = pq.read_table(path)
    pq.write_table(table.slice(6, 10), path)
    add(folder, tmp_path / "out")
    assert MeasureCalibration.load(tmp_path / "out") == MeasureCalibration.load(with_reasons)


def test_wrong_requests(images: Path, pairs: Path, tmp_path: Path) -> None:
    assert "is the input dataset" in add(images, images, status=2)
    assert "omit edit" in add(images, tmp_path / "out", "--reasons", "measured,edit", status=1)
    assert "choose from" in add(images, tmp_path / "out", "--reasons", "guessed", status=2)
    assert "no such folder" in add(tmp_path / "nowhere", tmp_path / "out", status=1)
    few = tmp_path / "few"
    table = pq.read_table(next(images.glob("data/train-*")))
    (few / "data").mkdir(parents=True)
    pq.write_table(table.slice(0, 20), few / "data" / "train-00000-of-00001.parquet")
    assert "too few to say what is usual" in add(few, tmp_path / "out", status=1)


def test_edits_alone_need_no_photos(pairs: Path, tmp_path: Path) -> None:
    add(pairs, tmp_path / "out", "--reasons", "edit")
    opened = open_dataset(tmp_path / "out")["train"]
    assert {one["source"] for cell in opened["twin_reasons"] for one in cell} == {"edit"}
    assert not (tmp_path / "out" / "measures.json").exists()
    assert not any(opened["image_reasons"])


def test_rows_are_numbered_over_all_splits(images: Path) -> None:
    members = open_members(str(images))
    assert members.rows == 160
    numbered = list(members.numbered(0, 160))
    assert [number for number, *_ in numbered] == list(range(160))
    assert [split for _, split, _ in numbered] == [split for split, n in SPLITS.items() for _ in range(2 * n)]
    assert [row["group"] for _, _, row in members.numbered(118, 123)] == [row["group"] for *_, row in numbered[118:123]]
    json.dumps(members.fingerprint)
