"""`data_gen/import_images.py` as a user runs it: sets of others in, image datasets out."""

from __future__ import annotations

import io
import os
import sys
import types
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo
from tests.scripts.here import run_here
from vlm_detect.columns import IMAGE_FEATURES
from vlm_detect.data.image_sets import CIFAR_CLASSES, open_image_set
from vlm_detect.data.layouts import cifake_class
from vlm_detect.data.pairs import open_dataset
from vlm_detect.data.selection import Selection
from vlm_detect.errors import UserError

PROGRAM = "data_gen/import_images.py"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write(path: Path, seed: int, *, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, (32, 32)).save(path, quality=quality)


def make_cifake(root: Path, per_class: int = 2) -> Path:
    """The published layout, with a training image that repeats a test image, byte for byte and nearly."""
    seed = 0
    for split in ("train", "test"):
        for label in ("REAL", "FAKE"):
            for number in range(1, 11):
                for i in range(per_class):
                    seed += 1
                    suffix = "" if number == 1 else f" ({number})"
                    write(root / split / label / f"{i:04d}{suffix}.jpg", seed)
    test_image = root / "test" / "REAL" / "0000.jpg"
    (root / "train" / "REAL" / "0009.jpg").write_bytes(test_image.read_bytes())
    Image.open(test_image).save(root / "train" / "REAL" / "0008.jpg", quality=70)
    return root


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((folder / "data").glob("*.parquet")):
        found.setdefault(file.name.split("-")[0], []).extend(pq.read_table(file).to_pylist())
    return found


def test_the_class_is_read_from_the_name():
    assert [cifake_class(f"0012 ({n}).jpg") for n in range(2, 11)] == list(CIFAR_CLASSES[1:])
    assert cifake_class("0012.jpg") == "airplane"


def test_cifake_keeps_its_official_test_set(tmp_path):
    make_cifake(tmp_path / "archive")
    done = run_here(PROGRAM, "--from", "cifake", tmp_path / "archive", "--out", tmp_path / "out", "--shard_size", 16)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert {split: len(found) for split, found in rows.items()} == {"train": 36, "validation": 4, "test": 40}
    assert all("/test/" in row["source"]["path_or_id"] for row in rows["test"])
    assert all("/train/" in row["source"]["path_or_id"] for row in rows["train"] + rows["validation"])
    groups = [{row["group"] for row in found} for found in rows.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for row in rows["test"]:
        path = Path(row["source"]["path_or_id"])
        assert row["label"] == {"REAL": "real", "FAKE": "generated"}[path.parent.name]
        assert row["object_class"] == cifake_class(path.name)
        assert row["generator"] == ("stable-diffusion-1.4" if row["label"] == "generated" else "")
        assert (row["image"]["path"], row["source"]["jpeg_quality"]) == (None, 90)
        published, kept = (np.asarray(Image.open(file)) for file in (path, io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_array_equal(published, kept)
    rejects = {Path(r["id"]).name: r["reason"] for r in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()}
    assert rejects == {"0009.jpg": "duplicate", "0008.jpg": "near_duplicate"}
    opened = open_dataset(tmp_path / "out")
    assert opened["train"].features == IMAGE_FEATURES
    assert "label" in open_dataset(tmp_path / "out")["train"].column_names
    assert "The test split is the published one" in (tmp_path / "out" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"]

    again = run_here(PROGRAM, "--from", "cifake", tmp_path / "archive", "--out", tmp_path / "out", "--shard_size", 16)
    assert (again.returncode, "nothing left to do" in again.stdout) == (0, True)
    other = run_here(PROGRAM, "--from", "cifake", tmp_path / "archive", "--out", tmp_path / "out", "--limit", 8)
    assert (other.returncode, "was made with other settings" in other.stderr) == (1, True)


def test_an_interrupted_import_continues_and_gives_the_same_files(tmp_path, monkeypatch):
    from vlm_detect.generate import import_step

    make_cifake(tmp_path / "archive")
    arguments = ["--from", "cifake", tmp_path / "archive", "--shard_size", 20]
    assert run_here(PROGRAM, *arguments, "--out", tmp_path / "whole").returncode == 0
    decode, calls = import_step.decode_image, []

    def interrupted(data: bytes) -> Any:
        calls.append(data)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr(import_step, "decode_image", interrupted)
    assert run_here(PROGRAM, *arguments, "--out", tmp_path / "resumed").returncode == 130
    done = len(list((tmp_path / "resumed.work" / "shards").iterdir()))
    assert done == 2
    assert run_here(PROGRAM, *arguments, "--out", tmp_path / "resumed").returncode == 0
    assert len(calls) == 45 + 82 - 40
    for file in sorted((tmp_path / "whole").rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "resumed" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_kaggle_is_fetched_by_kagglehub(tmp_path, monkeypatch):
    make_cifake(tmp_path / "archive", per_class=1)
    asked = []
    fake = types.ModuleType("kagglehub")
    fake.dataset_download = lambda handle: asked.append(handle) or str(tmp_path / "archive")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    monkeypatch.setattr("vlm_detect.data.image_sets.require", lambda *_: None)
    done = run_here(PROGRAM, "--from", "cifake", "kaggle", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert set(asked) == {"birdy654/cifake-real-and-ai-generated-synthetic-images"}

    def refuse(handle: str) -> str:
        raise ConnectionError("no route to host")

    fake.dataset_download = refuse  # type: ignore[attr-defined]
    from vlm_detect.generate.import_step import _image_set

    _image_set.cache_clear()
    done = run_here(PROGRAM, "--from", "cifake", "kaggle:me/mine", "--out", tmp_path / "other")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "kaggle:me/mine: cannot be downloaded from Kaggle (no route to host)" in done.stderr


def make_genimage(root: Path) -> Path:
    seed = 1000
    for generator in ("ADM", "BigGAN"):
        for split, count in (("train", 8), ("val", 4)):
            for i in range(count):
                seed += 2
                folder = root / generator / f"imagenet_{generator.lower()}" / split
                write(folder / "ai" / f"{i:03d}_{generator.lower()}_{i}.png", seed)
                write(folder / "nature" / f"n0144076{i}_{i}{len(split)}.JPEG", seed + 1)
    return root


def test_genimage_and_a_generator_held_out(tmp_path):
    make_genimage(tmp_path / "set")
    done = run_here(
        PROGRAM, "--from", "genimage", tmp_path / "set", "--out", tmp_path / "out", "--hold_out", "generator=ADM"
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert {row["generator"] for row in rows["train"] + rows["validation"] + rows["test"]} == {"", "BigGAN"}
    assert {row["generator"] for row in rows["unseen"]} == {"", "ADM"}
    assert len(rows["unseen"]) == 24
    assert {row["label"] for row in rows["unseen"]} == {"real", "generated"}
    assert all("/val/" in row["source"]["path_or_id"] for row in rows["test"])
    real = next(row for row in rows["test"] if row["label"] == "real")
    assert real["object_class"].startswith("n0144076")


@pytest.mark.parametrize(
    ("path", "label", "generator", "object_class", "split"),
    [
        ("progan/airplane/0_real/a.png", "real", "", "airplane", None),
        ("progan/airplane/1_fake/a.png", "generated", "progan", "airplane", None),
        ("test/sdxl/1_fake/a.png", "generated", "sdxl", "", "test"),
        ("FAKE/a.png", "generated", "", "", None),
        ("train/REAL/a.png", "real", "", "", "train"),
        ("EDITED/a.png", "edited", "", "", None),
        ("whatever/a.png", None, "", "", None),
    ],
)
def test_folder_names_give_the_label(path, label, generator, object_class, split):
    from vlm_detect.data.layouts import _folder_entry
    from vlm_detect.records import LABEL_NAMES

    entry = _folder_entry(Path("/set") / path, Path(path).parts[:-1], LABEL_NAMES)
    if label is None:
        assert entry is None
    else:
        assert entry is not None
        assert (entry.label, entry.generator, entry.object_class, entry.split) == (
            label,
            generator,
            object_class,
            split,
        )


def test_a_limit_takes_labels_and_generators_alike(tmp_path):
    for i in range(12):
        write(tmp_path / "set" / "a" / "1_fake" / f"{i}.png", i)
        write(tmp_path / "set" / "b" / "1_fake" / f"{i}.png", 100 + i)
        write(tmp_path / "set" / "a" / "0_real" / f"{i}.png", 200 + i)
    done = run_here(PROGRAM, "--from", "folders", tmp_path / "set", "--out", tmp_path / "out", "--limit", 12)
    assert done.returncode == 0, done.stderr
    rows = [row for found in rows_of(tmp_path / "out").values() for row in found]
    generators = [row["generator"] for row in rows if row["label"] == "generated"]
    assert (len(rows), generators.count("a"), generators.count("b")) == (12, 3, 3)
    assert set(rows_of(tmp_path / "out")) == {"train", "validation", "test"}


def test_unusual_files_are_stored_correctly_or_rejected(tmp_path):
    for i in range(3):
        write(tmp_path / "set" / "fake" / f"{i}.png", i)
        write(tmp_path / "set" / "real" / f"{i}.jpg", 50 + i)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    photo(90, (40, 20)).save(tmp_path / "set" / "real" / "turned.jpg", quality=80, exif=exif)
    named = Image.Exif()
    named[0x010F] = "a camera"
    photo(91, (40, 20)).save(tmp_path / "set" / "real" / "named.jpg", quality=80, exif=named, comment=b"mine")
    photo(92, (40, 20)).save(tmp_path / "set" / "fake" / "other.webp", lossless=True)
    (tmp_path / "set" / "fake" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "set" / "fake" / "blank.png")
    done = run_here(PROGRAM, "--from", "folders", tmp_path / "set", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {Path(r["source"]["path_or_id"]).name: r for found in rows_of(tmp_path / "out").values() for r in found}
    turned, named_row, other = (
        Image.open(io.BytesIO(rows[name]["image"]["bytes"])) for name in ("turned.jpg", "named.jpg", "other.webp")
    )
    assert (turned.format, turned.size, rows["turned.jpg"]["source"]["width"]) == ("JPEG", (20, 40), 20)
    for bare in (turned, named_row):
        assert not dict(bare.getexif())
    assert "comment" not in named_row.info
    np.testing.assert_array_equal(
        np.asarray(named_row), np.asarray(Image.open(tmp_path / "set" / "real" / "named.jpg"))
    )
    assert other.format == "PNG"
    np.testing.assert_array_equal(np.asarray(other), np.asarray(photo(92, (40, 20))))
    rejects = {Path(r["id"]).name for r in pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()}
    assert rejects == {"broken.png", "blank.png"}


def test_a_dataset_with_a_label_column(tmp_path):
    images = [{"bytes": _png(photo(i)), "path": None} for i in range(12)]
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["sd", "genuine"]),
            "model": datasets.Value("string"),
        }
    )
    columns = {"picture": images, "label": [i % 2 for i in range(12)], "model": ["sd2"] * 12}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    unknown = run_here(PROGRAM, "--from", "hub", tmp_path / "set", "--out", tmp_path / "out")
    assert (unknown.returncode, "--labels sd=generated" in unknown.stderr) == (1, True)
    done = run_here(PROGRAM, "--from", "hub", tmp_path / "set", "--out", tmp_path / "out", "--labels", "sd=generated")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {"train", "validation", "test"}
    flat = [row for found in rows.values() for row in found]
    assert {(row["label"], row["generator"]) for row in flat} == {("generated", "sd2"), ("real", "")}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--from", "cifake", "{empty}"], 1, "none of its 0 images"),
        (["--from", "cifake", "{absent}"], 1, "no such folder"),
        (["--from", "nobody", "{empty}"], 2, "choose from cifake, genimage, folders, hub"),
        (["--from", "folders", "{reals}"], 1, "all real; two labels are needed"),
        (["--from", "folders", "{reals}", "--labels", "x"], 2, "--labels x: give NAME=real"),
        (["--from", "folders", "{reals}", "--hold_out", "model=x"], 2, "--hold_out model=x: give generator=NAME"),
        (["--from", "folders", "{reals}", "--hold_out", "generator=x"], 1, "no image matches"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, status, says):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "reals" / "real" / "a.png", 1)
    named = {name: str(tmp_path / name) for name in ("empty", "absent", "reals")}
    done = run_here(PROGRAM, *(text.format(**named) for text in arguments), "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_set_without_usable_images_is_one_clear_line(tmp_path: Path) -> None:
    for label in ("real", "fake"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "0.png").write_bytes(b"no image")
    done = run_here(PROGRAM, "--from", "folders", tmp_path / "set", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none of the 2 images is usable (2 not_an_image); the first is" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_folder_of_one_generator_may_be_the_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("ai", "nature"):
        write(tmp_path / "BigGAN" / "train" / name / "0.jpg", 1)
    (tmp_path / "ADM").symlink_to("BigGAN")
    monkeypatch.chdir(tmp_path / "BigGAN" / "train")
    for given, generator in (("..", "BigGAN"), (str(tmp_path / "ADM"), "ADM")):
        assert {entry.generator for entry in open_image_set("genimage", given).entries} == {generator, ""}
    monkeypatch.chdir("..")
    assert {entry.generator for entry in open_image_set("genimage", ".").entries} == {"BigGAN", ""}


def test_given_labels_override_the_interpretation_of_a_column(tmp_path: Path) -> None:
    """True may well stand for a real photo, so that it has to be said; and in a ClassLabel -1 is none."""
    about = {"image": datasets.Image(), "label": datasets.Value("bool")}
    cells = [photo(i, (32, 32)) for i in range(4)]
    rows = datasets.Dataset.from_dict({"image": cells, "label": [True, False] * 2}, datasets.Features(about))
    rows.save_to_disk(tmp_path / "set")
    for word, expected in (("real", "real"), ("generated", "generated")):
        other = "generated" if word == "real" else "real"
        selection = Selection(labels=(("True", word), ("False", other)))
        entries = open_image_set("hub", str(tmp_path / "set"), selection).entries
        assert {entry.label for entry in entries if int(entry.where.partition("#")[2]) % 2 == 0} == {expected}
    with pytest.raises(UserError, match="label true does not say"):
        open_image_set("hub", str(tmp_path / "set"))
    unlabelled = rows.remove_columns("label").add_column("label", [0, 1, -1, -1])
    unlabelled.cast_column("label", datasets.ClassLabel(names=["real", "fake"])).save_to_disk(tmp_path / "test")
    entries = open_image_set("hub", str(tmp_path / "test")).entries
    assert {entry.where.partition("#")[2]: entry.label for entry in entries} == {
        "0": "real",
        "1": "generated",
        "2": None,
        "3": None,
    }


def test_genimage_file_names_give_the_class():
    from vlm_detect.data.layouts import _genimage_entry, _with_synsets
    from vlm_detect.records import LABEL_NAMES

    def entry(label: str, name: str):
        found = _genimage_entry(Path("/g") / name, ("BigGAN", "train", label), LABEL_NAMES)
        assert found is not None
        return found

    fakes = {"789_biggan_00101.png": "789", "VQDM_1000_200_00_017_vqdm_00020.png": "17", "112_midjourney_23.png": "112"}
    assert {name: entry("ai", name).object_class for name in fakes} == fakes
    assert entry("nature", "ILSVRC2012_val_00000744.JPEG").object_class == ""
    photos = [entry("nature", f"n{i:08d}_1.JPEG") for i in range(1000)]
    named = _with_synsets([*photos, *(entry("ai", name) for name in fakes)])
    assert [e.object_class for e in named[1000:]] == ["n00000789", "n00000017", "n00000112"]
    few = _with_synsets([*photos[:5], entry("ai", "789_biggan_00101.png")])
    assert few[-1].object_class == "789"


@pytest.mark.skipif("VLM_DETECT_DATA" not in os.environ, reason="needs the development data of VLM_DETECT_DATA")
def test_published_files_keep_traces_for_the_audit(tmp_path):
    traps = Path(os.environ["VLM_DETECT_DATA"]) / "traps"
    arguments = ["--from", "folders", traps / "quality_shoes240", "--limit", 12, "--out", tmp_path / "out"]
    done = run_here(PROGRAM, *arguments)
    assert done.returncode == 0, done.stderr
    rows = [row for found in rows_of(tmp_path / "out").values() for row in found]
    assert {(row["label"], row["source"]["jpeg_quality"]) for row in rows} == {("generated", 90), ("real", 95)}
    for row in rows:
        published, kept = (
            Image.open(file) for file in (row["source"]["path_or_id"], io.BytesIO(row["image"]["bytes"]))
        )
        np.testing.assert_array_equal(np.asarray(published), np.asarray(kept))
        assert published.quantization == kept.quantization  # type: ignore[attr-defined]
        assert not {"icc_profile", "exif"} & set(kept.info)


@pytest.mark.skipif("VLM_DETECT_DATA" not in os.environ, reason="needs the development data of VLM_DETECT_DATA")
def test_cifakes_parquet_and_its_edits(tmp_path):
    images = open_image_set("cifake", str(Path(os.environ["VLM_DETECT_DATA"]) / "cifake"), Selection(edited=True))
    assert len(images.entries) == 99_622 + 3_000
    assert {entry.split for entry in images.entries if entry.label != "edited"} == {"train"}
    groups = {entry.group for entry in images.entries if entry.label == "real"}
    edited = [entry for entry in images.entries if entry.label == "edited"]
    from_real = [entry for entry in edited if entry.where.startswith("edited_from_real")]
    assert all(entry.group in groups for entry in from_real)  # an edit shares its photo's split
    assert not any(entry.group in groups for entry in edited if entry not in from_real)
    found = [(entry, data) for entry, data in images.read(0, 20)]
    assert [entry for entry, _ in found] == list(images.entries[:20])
    assert all(Image.open(io.BytesIO(data)).size == (32, 32) for _, data in found)
