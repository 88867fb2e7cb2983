"""Labelled sets as the Hub has them: images and labels in every form, found without a flag or by one."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.factories import photo
from vlm_detect.data import dataset_rows
from vlm_detect.data.audit.samples import read_samples
from vlm_detect.data.dataset_rows import open_all_splits
from vlm_detect.data.image_sets import ImageSet, open_image_set
from vlm_detect.data.selection import Selection
from vlm_detect.data.sources import SourcePhoto, open_source
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected

N = 6
FAKE = [i % 2 for i in range(N)]
WORDS = ["fake" if fake else "real" for fake in FAKE]
LABELS = ["generated" if fake else "real" for fake in FAKE]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jpeg(i: int) -> bytes:
    buffer = io.BytesIO()
    photo(i, (32, 32)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


DATA = [jpeg(i) for i in range(N)]
CELLS = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(DATA)]


def parquet(folder: Path, columns: dict[str, Any], split: str = "train") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def with_features(folder: Path, columns: dict[str, Any], **features: Any) -> Path:
    (folder / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def webdataset(folder: Path, *members: str) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for i in range(N):
            texts = {"cls": str(FAKE[i]), "json": json.dumps({"label": WORDS[i]})}
            for suffix in members:
                data = texts[suffix].encode() if suffix in texts else DATA[i]
                about = tarfile.TarInfo(f"{i:05d}.{suffix}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    return folder


CLASSES = datasets.ClassLabel(names=["real", "fake"])
ART = datasets.ClassLabel(names=["RealArt", "AiArtData"])
TEXT, IMAGE = datasets.Value("string"), datasets.Image()
NUMBERS = (("0", "real"), ("1", "generated"))
LAYOUTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "raw bytes": (
        lambda f: parquet(f, {"image_name": WORDS, "image_data": DATA, "label": FAKE, "model_name": WORDS}),
        {"labels": NUMBERS},
    ),
    "raw bytes named image": (lambda f: parquet(f, {"image": DATA, "label": WORDS}), {}),
    "raw bytes, chosen": (
        lambda f: parquet(f, {"thumb": [b"x"] * N, "payload": DATA, "label": WORDS}),
        {"image_column": "payload"},
    ),
    "truth values": (
        lambda f: parquet(f, {"image": CELLS, "label": [bool(x) for x in FAKE]}),
        {"labels": (("true", "generated"), ("false", "real"))},
    ),
    "is_real": (lambda f: parquet(f, {"image": CELLS, "is_real": [not x for x in FAKE]}), {}),
    "is_fake": (lambda f: parquet(f, {"image": CELLS, "is_fake": FAKE}), {}),
    "integers": (lambda f: parquet(f, {"image": CELLS, "label": FAKE}), {"labels": NUMBERS}),
    "floats": (lambda f: parquet(f, {"image": CELLS, "label": [float(x) for x in FAKE]}), {"labels": NUMBERS}),
    "another column": (
        lambda f: parquet(f, {"image": CELLS, "label": ["cat"] * N, "Label_A": WORDS}),
        {"label_column": "label_a"},
    ),
    "classes": (lambda f: with_features(f, {"image": CELLS, "label": FAKE}, image=IMAGE, label=CLASSES), {}),
    "names of classes": (lambda f: with_features(f, {"image": CELLS, "label": FAKE}, image=IMAGE, label=ART), {}),
    "a list of images": (
        lambda f: with_features(
            f, {"images": [[cell] for cell in CELLS], "label": WORDS}, images=datasets.List(IMAGE), label=TEXT
        ),
        {},
    ),
    "WebDataset, classes": (lambda f: webdataset(f, "jpg", "cls"), {"labels": NUMBERS}),
    "WebDataset, JSON": (lambda f: webdataset(f, "jpg", "json"), {}),
    "one tar": (lambda f: webdataset(f, "jpg", "json") / "train-000000.tar", {}),
}


def read_all(images: ImageSet) -> dict[bytes, str | None]:
    return {data: entry.label for entry, data in images.read(0, len(images.entries)) if isinstance(data, bytes)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_images_and_labels(tmp_path: Path, layout: str) -> None:
    make, flags = LAYOUTS[layout]
    images = open_image_set("hub", str(make(tmp_path / "set")), Selection(**flags))
    assert read_all(images) == dict(zip(DATA, LABELS, strict=True))
    assert "= real (3)" in images.reading
    assert "= generated (3)" in images.reading
    if flags.get("labels"):
        with pytest.raises(UserError, match=r"does not say whether an image is real.* --labels"):
            open_image_set("hub", str(tmp_path / "set"), Selection())


@pytest.mark.parametrize("kind", ["dataset", "dict"])
def test_saved_datasets(tmp_path: Path, kind: str) -> None:
    features = datasets.Features({"image": IMAGE, "label": CLASSES})
    rows = datasets.Dataset.from_dict({"image": CELLS, "label": FAKE}, features=features)
    saved = rows if kind == "dataset" else datasets.DatasetDict({"train": rows.select(range(4)), "test": rows})
    saved.save_to_disk(str(tmp_path / "set"))
    images = open_image_set("hub", str(tmp_path / "set"))
    assert read_all(images) == dict(zip(DATA, LABELS, strict=True))
    splits = {entry.split for entry in images.entries}
    assert splits == ({None} if kind == "dataset" else {"train", "test"})
    source = open_source(f"{tmp_path / 'set'}{'' if kind == 'dataset' else '::test'}")
    assert [photo.data for photo in source.read(0, N) if isinstance(photo, SourcePhoto)] == DATA


def test_a_row_without_label_or_image_is_one_reject(tmp_path: Path) -> None:
    labels, cells = [*WORDS], [*CELLS]
    labels[5], cells[3] = None, None  # type: ignore[call-overload]
    images = open_image_set("hub", str(parquet(tmp_path / "set", {"image": cells, "label": labels})))
    found = {entry.where.rpartition("#")[2]: (entry.label, data) for entry, data in images.read(0, N)}
    assert found["5"][0] is None
    assert isinstance(found["3"][1], ImageRejected)
    assert images.reading.endswith("1 without a label")
    assert sum(label is not None and isinstance(data, bytes) for label, data in found.values()) == N - 2


def test_several_images_in_one_row_are_one_reject(tmp_path: Path) -> None:
    lists = [[cell] for cell in CELLS]
    lists[2] *= 2
    folder = with_features(tmp_path / "set", {"images": lists, "label": WORDS}, images=datasets.List(IMAGE), label=TEXT)
    rows = open_all_splits(str(folder), streaming=False)["train"]
    reasons = [data.reason for _, data in rows.images(range(N)) if isinstance(data, ImageRejected)]
    assert reasons == ["several_images"]


def test_tars_whose_images_have_different_suffixes(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path / "set",
        {
            "jpg": [cell if i % 3 else None for i, cell in enumerate(CELLS)],
            "png": [None if i % 3 else cell for i, cell in enumerate(CELLS)],
            "label": WORDS,
        },
    )
    assert read_all(open_image_set("hub", str(folder))) == dict(zip(DATA, LABELS, strict=True))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "set", {"image": CELLS, "kind": WORDS}))
    for flags, says in (
        ({}, r"no label column .* it has kind: name one with --label_column"),
        ({"label_column": "x"}, "no column x; it has kind"),
        ({"image_column": "kind"}, "no image column kind"),
        ({"mask_column": "m"}, "no mask column m"),
    ):
        with pytest.raises(UserError, match=says):
            open_image_set("hub", folder, Selection(**flags))
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        open_source(f"{folder}::nosuch")
    (tmp_path / "rows.xlsx").touch()
    with pytest.raises(UserError, match=r"rows.xlsx: rows are read from \.parquet"):
        open_image_set("hub", str(tmp_path / "rows.xlsx"))


TABLES: dict[str, Callable[[Path], tuple[str, str]]] = {
    "imagefolder": lambda f: ("metadata.csv", "file_name,label\n" + rows_of("{i}.jpg,{word}")),
    "JSON Lines": lambda f: ("metadata.jsonl", rows_of('{{"file_name": "{i}.jpg", "label": "{word}"}}')),
    "tabs": lambda f: ("list.tsv", "path\tlabel\n" + rows_of("{i}.jpg\t{word}")),
    "a mark and spaces": lambda f: ("labels.csv", "\ufeffFilename,Label\n" + rows_of(" {i}.jpg , {word}")),
    "of another machine": lambda f: ("labels.csv", "path,is_fake\n" + rows_of("/mnt/x/set/{i}.jpg,{fake}")),
    "of Windows": lambda f: ("labels.csv", "path,is_fake\n" + rows_of("C:\\x\\{i}.jpg,{fake}")),
}


def rows_of(form: str) -> str:
    return "".join(form.format(i=i, word=WORDS[i], fake=FAKE[i]) + "\n" for i in range(N))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("below", ["", "train"])
def test_tables_next_to_flat_images(tmp_path: Path, table: str, below: str) -> None:
    folder = tmp_path / "set" / below
    folder.mkdir(parents=True)
    for i, data in enumerate(DATA):
        (folder / f"{i}.jpg").write_bytes(data)
    (folder / "unlisted.jpg").write_bytes(DATA[0])
    name, text = TABLES[table](folder)
    (folder / name).write_text(text)
    images = open_image_set("folders", str(tmp_path / "set"))
    assert read_all(images) == dict(zip(DATA, LABELS, strict=True))
    assert {entry.split for entry in images.entries} == {"train" if below else None}
    assert images.skipped == {"image not in any table": 1}
    assert "= generated (3)" in images.reading
    assert read_all(open_image_set("folders", str(folder / name))) == dict(zip(DATA, LABELS, strict=True))


def test_tables_with_other_columns_and_numbers(tmp_path: Path) -> None:
    for i, data in enumerate(DATA):
        (tmp_path / f"{i}.jpg").write_bytes(data)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "list.csv").write_text(
        "where,answer,split,generator\n" + rows_of("{i}.jpg,{fake},test,sdxl") + "gone.jpg,1,,\n7.jpg,,,\n"
    )
    flags = {"image_column": "where", "label_column": "answer"}
    with pytest.raises(UserError, match="answer 0 does not say"):
        open_image_set("folders", str(tmp_path / "list.csv"), Selection(**flags))
    images = open_image_set("folders", str(tmp_path), Selection(labels=NUMBERS, **flags))
    found = {Path(entry.where).name: (entry, data) for entry, data in images.read(0, 99)}
    assert (found["1.jpg"][0].split, found["1.jpg"][0].generator) == ("test", "sdxl")
    assert isinstance(found["gone.jpg"][1], ImageRejected)
    assert found["7.jpg"][0].label is None
    for options, says in (({}, "no column of files"), ({"image_column": "where"}, "no column of labels")):
        with pytest.raises(UserError, match=says):
            open_image_set("folders", str(tmp_path / "list.csv"), Selection(**options))


def test_a_cached_dataset_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the nodes of a cluster: what was downloaded before is read, and the Hub is not asked."""
    folder = parquet(tmp_path / "set", {"image": CELLS, "label": WORDS})
    cache = tmp_path / "built"
    datasets.load_dataset(str(folder), cache_dir=str(cache))
    (made,) = cache.glob("*/*/*/*/dataset_info.json")
    held = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / "abc"
    shutil.copytree(made.parent, held)
    about = json.loads((held / "dataset_info.json").read_text())
    about.update(config_name="default", dataset_name="name")
    (held / "dataset_info.json").write_text(json.dumps(about))
    (arrow,) = held.glob("*.arrow")
    arrow.rename(held / "name-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(dataset_rows, "ask_hub", lambda name: pytest.fail("the Hub is asked"))
    for limit in (None, 4):
        images = open_image_set("hub", "owner/name", Selection(limit=limit))
        assert len(read_all(images)) == (limit or N)
    photos = list(open_source("owner/name::train").read(0, N))
    assert [photo.data for photo in photos if isinstance(photo, SourcePhoto)] == DATA
    with pytest.raises(UserError, match=r"owner/other: cannot be read .* HF_HUB_OFFLINE is set"):
        open_image_set("hub", "owner/other")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    audited = read_samples("owner/name", 100)
    assert {sample.data for sample in audited.samples} == set(DATA)
    with pytest.raises(UserError, match=r"owner/other: cannot be read .* HF_HUB_OFFLINE is set"):
        read_samples("owner/other", 100)
    # Its files as they were fetched, which `datasets` has made nothing of.
    snapshot = tmp_path / "hub" / "datasets--owner--files"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("f" * 40)
    shutil.copytree(folder, snapshot / "snapshots" / ("f" * 40))
    assert {sample.data for sample in read_samples("owner/files", 100).samples} == set(DATA)
