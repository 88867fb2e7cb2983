"""The presets of published sets, each on a small folder of the published shape."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.factories import photo
from tests.scripts.here import run_here
from vlm_detect.data.image_sets import IMPORTERS, open_image_set
from vlm_detect.data.published import PRESETS, Published, published, read_published
from vlm_detect.data.selection import Selection
from vlm_detect.errors import UserError

SIZE = (40, 32)
BOX = (8, 4, 24, 20)
IMAGE, TEXT, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
POLYGONS = datasets.List({"label": TEXT, "points": datasets.List(datasets.List(datasets.Value("float64")))})
# (label, generator, split) of an entry, and how many there are
Facts = dict[tuple[str, str, str | None], int]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask(box: tuple[int, int, int, int] | None = BOX) -> bytes:
    image = Image.new("L", SIZE)
    if box:
        image.paste(255, box)
    return encoded(image)


def image(seed: int) -> bytes:
    return encoded(photo(seed, SIZE))


def write(folder: Path, *names: str, first: int = 0) -> Path:
    for seed, name in enumerate(names, first):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(mask() if "mask" in name else image(seed))
    return folder


def rows(folder: Path, part: str, columns: dict[str, list[Any]], **features: Any) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, datasets.Features(features))
    table.to_parquet(folder / "data" / f"{part}-00000-of-00001.parquet")
    return folder


def card(folder: Path, *splits: str) -> Path:
    """The names of splits that `datasets` does not know by itself."""
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    return folder


def commfor(folder: Path) -> Path:
    columns = {"image_data": [image(0), image(1)], "label": [1, 0], "model_name": ["sd-2", "coco"], "prompt": ["", ""]}
    types = {"image_data": datasets.Value("binary"), "label": NUMBER, "model_name": TEXT, "prompt": TEXT}
    return card(rows(folder, "CompEval", columns, **types), "CompEval")


def openfake(folder: Path) -> Path:
    for seed, split in enumerate(("train", "test")):
        columns = {
            "image": [image(2 * seed), image(2 * seed + 1)],
            "label": ["real", "fake"],
            "model": ["real", "flux"],
        }
        rows(folder, split, columns, image=IMAGE, label=TEXT, model=TEXT)
    return folder


def sofake(folder: Path) -> Path:
    classes = datasets.ClassLabel(names=["real", "tampered", "full_synthetic"])
    columns = {
        "image": [image(0), image(1), image(2)],
        "mask": [None, mask(), None],
        "label": [0, 1, 2],
        "generator": ["", "nano banana", "imagen4"],
        "split": ["test"] * 3,
    }
    return rows(folder, "test", columns, image=IMAGE, mask=IMAGE, label=classes, generator=TEXT, split=TEXT)


def sid(folder: Path) -> Path:
    for seed, split in enumerate(("train", "validation")):
        columns = {"image": [image(3 * seed + i) for i in range(3)], "mask": [None, None, mask()], "label": [0, 1, 2]}
        rows(folder, split, columns, image=IMAGE, mask=IMAGE, label=NUMBER)
    return folder


def opensdi(folder: Path) -> Path:
    for seed, split in enumerate(("sd3", "flux")):
        columns = {
            "key": ["real/0", "entire/1", "partial/2"],
            "image": [image(3 * seed + i) for i in range(3)],
            "mask": [mask(None), mask((0, 0, *SIZE)), mask()],
            "label": [0, 1, 1],
        }
        rows(folder / "OpenSDI_test", split, columns, key=TEXT, image=IMAGE, mask=IMAGE, label=NUMBER)
    return card(folder / "OpenSDI_test", "sd3", "flux")


def aigibench(folder: Path) -> Path:
    places = ("train/car", "train/sdv1.4", "val/bird", "test/R3GAN", "test/SocialRF")
    return write(folder, *(f"{place}/{label}/{label}.png" for place in places for label in ("0_real", "1_fake")))


def ntire(folder: Path) -> Path:
    write(folder, *(f"shard_{i}/images/{name}.jpg" for i in range(2) for name in (f"q{i}", f"z{i}")))
    for i in range(2):
        (folder / f"shard_{i}" / "labels.csv").write_text(f",image_name,label\n0,q{i},0\n1,z{i},1\n")
    write(folder / "val", "val_images/v0.jpg")
    (folder / "val" / "val_labels.csv").write_text("image_name,label\nv0,1\n")
    return folder


def chameleon(folder: Path) -> Path:
    return write(folder, "test/0_real/a.jpg", "test/1_fake/b.jpg")


def xaigd(folder: Path) -> Path:
    fault = [{"label": "low-level-texture", "points": [[1.0, 2.0], [9.0, 2.0], [9.0, 8.0]]}]
    for seed, split in enumerate(("labeled_train", "labeled_test")):
        columns = {"image": [image(seed)], "generator": ["FLUX.1-dev"], "uid": [f"u{seed}"], "labels": [fault]}
        rows(folder, split, columns, image=IMAGE, generator=TEXT, uid=TEXT, labels=POLYGONS)
    return card(folder, "labeled_train", "labeled_test")


def inpx(folder: Path) -> Path:
    data = "test-data/data"
    return write(
        folder,
        f"{data}/originals/SUN_RGBD/p_1.jpg",
        f"{data}/standard_inpainting/SUN_RGBD/p_1_SUN_RGBD_Kandinsky_2_2_simple.jpg",
        f"{data}/inpainting_exchange/SUN_RGBD/p_1_SUN_RGBD_Kandinsky_2_2.jpg",
        "test-data/masks/SUN_RGBD_masks/p_1.jpg",
    )


MADE: dict[Callable[[Path], Path], Facts] = {
    commfor: {("real", "", "test"): 1, ("generated", "sd-2", "test"): 1},
    openfake: {
        ("real", "", "train"): 1,
        ("generated", "flux", "train"): 1,
        ("real", "", "test"): 1,
        ("generated", "flux", "test"): 1,
    },
    sofake: {
        ("real", "", "test"): 1,
        ("edited", "nano banana", "test"): 1,
        ("generated", "imagen4", "test"): 1,
    },
    sid: {(label, "", split): 1 for split in ("train", "validation") for label in ("real", "generated", "edited")},
    opensdi: {("real", "", "test"): 2, ("generated", "sd3", "test"): 2, ("generated", "flux", "test"): 2},
    aigibench: {
        ("real", "", "train"): 2,
        ("generated", "ProGAN", "train"): 1,
        ("generated", "sdv1.4", "train"): 1,
        ("real", "", "validation"): 1,
        ("generated", "ProGAN", "validation"): 1,
        ("real", "", "test"): 2,
        ("generated", "R3GAN", "test"): 1,
        ("generated", "SocialRF", "test"): 1,
    },
    ntire: {("real", "", "train"): 2, ("generated", "", "train"): 2, ("generated", "", "test"): 1},
    chameleon: {("real", "", "test"): 1, ("generated", "", "test"): 1},
    xaigd: {("generated", "FLUX.1-dev", "train"): 1, ("generated", "FLUX.1-dev", "test"): 1},
    inpx: {("real", "", "test"): 1, ("edited", "Kandinsky_2_2", "test"): 2},
}


def test_every_preset_is_tested_and_registered() -> None:
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    assert names == {make.__name__ for make in MADE}
    assert names <= set(IMPORTERS)
    assert published("folders") is None


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_folder_of_the_published_shape(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    images = open_image_set(make.__name__, str(make(tmp_path)))
    assert Counter((entry.label, entry.generator, entry.split) for entry in images.entries) == MADE[make]
    found = list(images.read(0, len(images.entries)))
    assert all(isinstance(data, bytes) for _, data in found)
    preset = IMPORTERS[make.__name__]
    assert isinstance(preset, Published)
    assert {entry.licence for entry in images.entries} == {preset.licence}
    assert {entry.mask for entry, _ in found if entry.label == "edited"} <= {mask()}


def test_masks_become_places(tmp_path: Path) -> None:
    done = run_here("data_gen/import_images.py", "--from", "inpx", inpx(tmp_path / "set"), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "INP-X: https://github.com/emirhanbilgic/INP-X, MIT; the photos are" in done.stdout
    (file,) = (tmp_path / "out" / "data").glob("*.parquet")
    made = pq.read_table(file).to_pylist()
    assert Counter((row["label"], row["edit"] and tuple(row["edit"]["box"])) for row in made) == {
        ("real", None): 1,
        ("edited", BOX): 2,
    }
    assert len({row["group"] for row in made}) == 1  # a photo and its edits share a split
    assert file.name.startswith("test-")


def test_a_missing_mask_is_one_reject(tmp_path: Path) -> None:
    inpx(tmp_path)
    (tmp_path / "test-data/masks/SUN_RGBD_masks/p_1.jpg").unlink()
    images = open_image_set("inpx", str(tmp_path))
    kinds = Counter(isinstance(data, bytes) for _, data in images.read(0, 3))
    assert kinds == {True: 1, False: 2}


def test_photos_for_a_set_without_any(tmp_path: Path) -> None:
    source = xaigd(tmp_path / "set")
    alone = run_here("data_gen/import_images.py", "--from", "xaigd", source, "--out", tmp_path / "out")
    assert (alone.returncode, alone.stderr.count("\n")) == (1, 1)
    assert "2 images, all generated; two labels are needed; --photos SRC adds photos" in alone.stderr
    write(tmp_path / "photos", *(f"{i}.png" for i in range(4)), first=50)
    (tmp_path / "photos" / "1.png").write_bytes(b"no image")
    arguments = ["--from", "xaigd", source, "--photos", tmp_path / "photos", "--limit", 4]
    done = run_here("data_gen/import_images.py", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "as published = generated" in done.stdout
    assert f"2 photos from {tmp_path / 'photos'} = real" in done.stdout
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(Path(row["id"]).name, row["reason"]) for row in rejects] == [("1.png", "not_an_image")]
    made = [row for file in (tmp_path / "out" / "data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert Counter((row["label"], row["generator"]) for row in made) == {
        ("real", ""): 1,
        ("generated", "FLUX.1-dev"): 2,
    }
    assert [Path(row["source"]["path_or_id"]).name for row in made if row["label"] == "real"] == ["0.png"]


def test_a_licence_that_forbids_an_upload_is_one_line(tmp_path: Path) -> None:
    chameleon(tmp_path / "set")
    arguments = ["--from", "chameleon", tmp_path / "set", "--out", tmp_path / "out", "--push_to_hub", "me/mine"]
    done = run_here("data_gen/import_images.py", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--push_to_hub me/mine: Chameleon may not be passed on (academic research only;" in done.stderr
    assert not (tmp_path / "out").exists()


def test_archives_have_to_be_unpacked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--from ntire hub: its files have to be downloaded and unpacked: https"):
        open_image_set("ntire", "hub")
    with pytest.raises(UserError, match=r"contains no labels.csv and no val_labels.csv"):
        open_image_set("ntire", str(tmp_path))
    with pytest.raises(UserError, match="none of its 0 images is in folders as --from chameleon has them"):
        open_image_set("chameleon", str(tmp_path))
    write(tmp_path, "labels/0.jpg")
    (tmp_path / "labels.csv").write_text("name,label\n0,1\n")
    with pytest.raises(UserError, match=r"labels.csv: no column image_name \(it has name, label\)"):
        open_image_set("ntire", str(tmp_path))


def test_given_labels_win(tmp_path: Path) -> None:
    swapped = Selection(labels=(("0", "generated"), ("1", "real")))
    entries = open_image_set("commfor", str(commfor(tmp_path)), swapped).entries
    assert Counter((entry.label, entry.generator) for entry in entries) == {("generated", "coco"): 1, ("real", ""): 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "contains a list, not a preset"),
        ("title: x", "missing 3 required positional arguments"),
        ("HEAD\nrow: {}", "unknown key row; did you mean rows?"),
        ("HEAD", "has to have one of rows, files and tables"),
        ("HEAD\nrows: {}\nfiles: [{path: x, label: real}]", "has to have one of rows, files and tables"),
        ("HEAD\nrows: {labels: {0: fine}}", "fine is not a label"),
        ("HEAD\nrows: {splits: {a: exam}}", "exam is not a split"),
        ("HEAD\nfiles: [{path: x}]", "x: gives no label"),
        ("HEAD\nfiles: [{path: x, label: real, mask: '{y}'}]", "'y' is no group of x"),
        ("HEAD\nfiles: [{path: '(', label: real}]", "missing ), unterminated subpattern"),
    ],
)
def test_bad_presets(tmp_path: Path, text: str, says: str) -> None:
    head = "title: x\nsource: x\nlicence: x\nverified: [x]"
    (tmp_path / "mine.yaml").write_text(text.replace("HEAD", head))
    with pytest.raises(UserError) as caught:
        read_published(tmp_path / "mine.yaml")
    assert says in str(caught.value)
