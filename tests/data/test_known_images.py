"""Images whose origin is known: a labelled set is read as one, anything else is photos, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from tests.train.toys import save_toy_pairs, stored, toy_image, toy_images
from vlm_detect.data.known_images import known_images
from vlm_detect.errors import UserError


def save_images(folder: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        toy_image(False, rng).save(folder / name)
    return folder


def entries(images) -> list[tuple[bool, bool]]:
    return [(image.is_generated, isinstance(image.data, bytes)) for image in images]


def test_a_folder_of_photos(tmp_path):
    """A folder within it may be called anything; files are not decoded here."""
    folder = save_images(tmp_path / "photos", ["a.png", "nature/b.png", "real/c.png"])
    (folder / "broken.png").write_bytes(b"")
    images = known_images(str(folder))
    assert (images.real, images.generated, len(list(images))) == (4, 0, 4)
    assert len(list(known_images(f"{folder}/*.png"))) == 2
    assert len(known_images(str(folder), limit=2)) == 2


def test_equal_files_are_one_group(tmp_path):
    folder = save_images(tmp_path, ["a.png", "b.png"])
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert len({image.group for image in known_images(str(folder))}) == 2


def test_labelled_folders(tmp_path):
    folder = save_images(tmp_path, ["real/a.png", "real/b.png", "fake/c.png", "edited/d.png"])
    images = known_images(str(folder))
    assert (images.real, images.generated) == (2, 1)
    assert entries(images) == [(False, True), (False, True), (True, True)]


def test_generated_images_are_never_used_as_photos(tmp_path):
    images = known_images(str(save_images(tmp_path, ["fake/a.png", "fake/b.png"])))
    assert (images.real, images.generated) == (0, 2)


def test_all_of_a_dataset_except_its_test_split(tmp_path):
    data = str(save_toy_pairs(tmp_path / "pairs", n_train=3, n_validation=4))
    whole = known_images(data)
    assert (whole.real, whole.generated) == (7, 7)
    assert len({image.group for image in whole}) == 4  # the toy's photos bear the same numbers in both splits
    assert len(known_images(data, split="validation")) == len(known_images(data, default="validation")) == 8
    assert len(known_images(data, limit=4)) == 4
    with pytest.raises(UserError, match="has no dev split"):
        known_images(data, split="dev")


def test_a_test_split_alone_is_refused(tmp_path):
    toy_images(["real", "generated"]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="no split but test"):
        known_images(str(tmp_path))


def save_rows(folder: Path, **columns: list) -> str:
    rng = np.random.default_rng(0)
    n = len(next(iter(columns.values()))) if columns else 3
    rows = {"image": [{"bytes": stored(toy_image(False, rng)).content, "path": None} for _ in range(n)], **columns}
    features = Features({"image": Image(), **{name: Value("string") for name in columns}})
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_rows_of_foreign_datasets(tmp_path):
    """With a label column they are a labelled set, by words; without one photos; with words of no label neither."""
    labelled = known_images(save_rows(tmp_path / "labelled", label=["real", "fake", "fake"]))
    assert (labelled.real, labelled.generated) == (1, 2)
    assert len(entries(labelled)) == 3
    bare = known_images(save_rows(tmp_path / "bare"))
    assert (bare.real, bare.generated) == (3, 0)
    with pytest.raises(UserError):
        known_images(save_rows(tmp_path / "breeds", label=["setter", "terrier", "hound"]))


def test_unknown_labels_of_an_image_dataset(tmp_path):
    images = toy_images(["real", "generated", "real"])
    unknown = images.remove_columns("label").add_column("label", ["real", "generated", "dog"])
    unknown.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="label dog"):
        known_images(str(tmp_path))
