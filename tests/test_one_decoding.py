"""One image, one decoding: every path of the package sees the same pixels of the same bytes."""

from __future__ import annotations

import ast
import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import vlm_detect
from tests.factories import tiny_vlm
from tests.images.test_decode import saved, wide_gamut_profile
from vlm_detect.apps.scan import scan
from vlm_detect.apps.session import Session
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.cnn.pixels import decode_split
from vlm_detect.columns import IMAGE_FEATURES
from vlm_detect.data.audit import measures
from vlm_detect.images.decode import decode_image
from vlm_detect.images.stored import StoredImage
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.picture import Picture, open_picture
from vlm_detect.models.cnn.squares import to_square
from vlm_detect.stats.calibration import Calibration
from vlm_detect.train.augment import AugmentedImage
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.options import QuestionOptions
from vlm_detect.train.recalibrate import recalibrate
from vlm_detect.train.validation import ValidationSet

SIZE = (24, 32)


def two_tone() -> Image.Image:
    """Dark red on the left, grey on the right: which is which tells how it was turned."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    pixels[:, : SIZE[0] // 2] = (200, 40, 40)
    return Image.fromarray(pixels)


def files() -> dict[str, bytes]:
    """Files that a decoder of their plain pixels gets wrong."""
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = np.asarray(two_tone().convert("RGBA")).copy()
    cut[:, SIZE[0] // 2 :, 3] = 0
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.uint16)
    return {
        "phone.jpg": saved(two_tone(), "JPEG", exif=exif, quality=95),
        "cutout.png": saved(Image.fromarray(cut), "PNG"),
        "grey16.png": saved(Image.fromarray(ramp), "PNG"),
        "gamut.png": saved(two_tone(), "PNG", icc_profile=wide_gamut_profile()),
    }


def pixels(image: Image.Image) -> bytes:
    assert image.mode == "RGB"
    return repr(image.size).encode() + image.tobytes()


def shown() -> set[bytes]:
    return {pixels(decode_image(data).image) for data in files().values()}


class Seen:
    """A tiny model whose `prepare` notes the images that it is given."""

    def __init__(self) -> None:
        self.vlm = tiny_vlm()
        self.images: list[Image.Image] = []
        self._prepare = self.vlm.prepare
        self.vlm.prepare = self.prepare  # type: ignore[method-assign]

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        self.images += images
        return self._prepare(images)

    @property
    def pixels(self) -> set[bytes]:
        return {pixels(image) for image in self.images}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """An image dataset whose stored images are these files, as another program may have written it."""
    rows = [
        {
            "image": {"bytes": data, "path": None},
            "label": "generated" if i % 2 else "real",
            "generator": "toy" if i % 2 else "",
            "object_class": "",
            "group": name,
            "source": None,
        }
        for i, (name, data) in enumerate(files().items())
    ]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        made = datasets.Dataset.from_list(rows, features=IMAGE_FEATURES)
        made.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


def rows_of(dataset: Path) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files=str(dataset / "data" / "train-*.parquet"), split="train")


def test_decoded_pixels() -> None:
    """The right values, so that all are not wrong alike."""
    images = {name: np.asarray(decode_image(data).image, int) for name, data in files().items()}
    assert images["phone.jpg"].shape == (SIZE[0], SIZE[1], 3)
    assert images["phone.jpg"][2, 16, 0] > 180 > images["phone.jpg"][-3, 16, 0]
    assert images["cutout.png"][:, SIZE[0] // 2 :].min() == 255
    assert abs(images["grey16.png"].mean() - 127.5) < 1
    assert images["gamut.png"][5, 2, 1] > images["gamut.png"][5, 2, 0]


def test_training(dataset: Path) -> None:
    seen = Seen()
    units = Units(rows_of(dataset), QuestionOptions())
    Collator(seen.vlm)([units[0, i] for i in range(len(units))])
    assert seen.pixels == shown()
    assert {image.open().size for image in units.images} == {image.size for image in units.images}
    turned = AugmentedImage(files()["phone.jpg"], augmentation=(("flip", ()),)).open()
    assert pixels(turned) == pixels(decode_image(files()["phone.jpg"]).image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_the_feature_cache(dataset: Path, tmp_path: Path) -> None:
    seen = Seen()
    seen.vlm.model.requires_grad_(False)
    Features.build(seen.vlm, Units(rows_of(dataset), QuestionOptions()).images, tmp_path / "features")
    blank = pixels(Image.new("RGB", (64, 48)))  # by which the weights are found that are read
    assert seen.pixels - {blank} == shown()


def test_validation_and_calibrate(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    assert {pixels(image.open()) for image in ValidationSet.from_rows(rows_of(dataset)).images} == shown()
    monkeypatch.setattr("vlm_detect.infer.detector.load_vlm", lambda run, adapter=None: seen.vlm)
    (tmp_path / "run").mkdir()
    recalibrate(tmp_path / "run", str(dataset), force=True)
    assert seen.pixels == shown()


def test_the_benchmark(dataset: Path, folder: Path) -> None:
    items = [
        {"id": name, "image": name, "question": "Is this image AI-generated?", "ground_truth": "No."}
        for name in files()
    ]
    (folder / "bench.json").write_text(json.dumps(items))
    for benchmark in (load_benchmark(folder / "bench.json"), load_benchmark(dataset)):
        assert {pixels(benchmark.image(item.images[0])) for item in benchmark.items} == shown()


def test_scan_chat_detector_and_server(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from vlm_detect.apps.bodies import Part
    from vlm_detect.apps.decoding import Decoding
    from vlm_detect.apps.settings import ServerSettings

    seen = Seen()
    detector = Detector(seen.vlm)
    scan(detector, [str(folder / name) for name in files()], out=tmp_path / "rows.jsonl")
    assert seen.pixels == shown()
    assert {pixels(Session(detector, str(folder / name)).image) for name in files()} == shown()

    odd = [saved(two_tone(), "JPEG", icc_profile=b"no profile" * 20, quality=90), saved(two_tone(), "GIF")]

    async def served() -> list[Picture]:
        decoding = Decoding(ServerSettings())
        try:
            return [await decoding.picture(Part(memoryview(data))) for data in [*files().values(), *odd]]
        finally:
            decoding.stop()

    pictures = asyncio.run(served())
    assert {pixels(picture.image) for picture in pictures[: -len(odd)]} == shown()
    # What the file is like comes along: the server's measurements and notes are those of scan.
    for picture, data in zip(pictures, [*files().values(), *odd], strict=True):
        here = open_picture(data)
        assert (picture.notes, picture.jpeg_quality) == (here.notes, here.jpeg_quality)
        assert (pixels(picture.image), picture.provenance) == (pixels(here.image), here.provenance)
    assert pictures[0].jpeg_quality == 95
    assert "profile" in pictures[-2].notes[0]
    given = [*files().values(), *(folder / name for name in files())]
    given += [Image.open(io.BytesIO(data)) for data in files().values()]  # as a caller from Python may have them
    assert {pixels(open_picture(one).image) for one in given} == shown()
    array = np.asarray(decode_image(files()["cutout.png"]).image)
    assert pixels(open_picture(array).image) == pixels(Image.fromarray(array))


def test_cnns_and_measures(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = decode_split(str(dataset), "train", size=16, fit="resize", cache=tmp_path / "pixels")
    squares = {to_square(decode_image(data).image, 16, "resize").tobytes() for data in files().values()}
    assert {image.tobytes() for image in shots.images} == squares
    seen = []
    monkeypatch.setattr(measures, "contrast", lambda values: seen.append(Image.fromarray(values)) or {})
    for data in files().values():
        measures.measure(data)
    assert {pixels(image) for image in seen} == shown()


def test_results_of_another_decoder_are_computed_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vlm = tiny_vlm()
    vlm.model.requires_grad_(False)
    caches = set()
    for decoder in (1, 2):
        monkeypatch.setattr("vlm_detect.images.stored.DECODER", decoder)
        monkeypatch.setattr("vlm_detect.cnn.pixels.DECODER", decoder)
        images = Units(rows_of(dataset), QuestionOptions()).images
        caches.add(Features.build(vlm, images, tmp_path / "features").folder)
        decode_split(str(dataset), "train", size=16, fit="resize", cache=tmp_path / "pixels")
    assert len(caches) == len(list((tmp_path / "pixels").glob("*.npy"))) == 2
    plain = StoredImage(saved(two_tone(), "JPEG"))
    assert plain.key == plain.sha256  # a cache of images that always looked alike stays
    assert StoredImage(files()["phone.jpg"]).key != StoredImage(files()["phone.jpg"]).sha256
    (tmp_path / "calibration.json").write_text('{"temperature": 2.0, "n": 30}')  # as the first version wrote it
    assert Calibration.load(tmp_path).temperature == 2.0
    assert "calibration.json was fitted by an earlier version" in caplog.text
    assert "vlm-detect calibrate" in caplog.text


# Files that open images which the package itself has just written, or only their header.
_OWN = {
    "images/bounds.py",  # for the decoder
    "images/encode.py",
    "images/jpeg.py",
    "train/augment.py",
    "benchmark/perturb.py",
    "benchmark/build.py",
    "generate/pair_rows.py",
    "generate/receipts.py",
    "generate/render_step.py",
}


def test_no_other_file_opens_images() -> None:
    package = Path(vlm_detect.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "open" and isinstance(node.value, ast.Name):
                found |= {path.relative_to(package).as_posix()} if node.value.id in ("Image", "PILImage") else set()
    assert found <= _OWN
