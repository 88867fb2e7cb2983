"""The audit finds what was planted, blames content for nothing, and leaves aligned sets alone."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter

from tests.data.factories import photo
from vlm_detect.cli import run
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.data.audit import audit_dataset, read_audit, write_audit
from vlm_detect.data.audit.containers import read_container
from vlm_detect.data.audit.measures import WRAPPING, blockiness, border
from vlm_detect.data.audit.probe import cross_validate
from vlm_detect.data.audit.samples import read_samples
from vlm_detect.errors import UserError
from vlm_detect.records import LABEL_NAMES
from vlm_detect.stats.areas import auc_interval, make_folds

DATA = os.environ.get("VLM_DETECT_DATA")
PHOTOS = 20
Save = Callable[[Image.Image], tuple[bytes, str]]


def detailed(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture with fine grain over it, as a photograph has."""
    grain = np.random.default_rng(seed + 1000).normal(0, 12, (size[1], size[0], 3))
    pixels = np.asarray(photo(seed, size), float) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue(), ".jpg"


def png(image: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def with_exif(image: Image.Image) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    return jpeg(image, exif=exif)


def framed(image: Image.Image) -> tuple[bytes, str]:
    inside = image.resize((image.width, image.height - 8))
    padded = Image.new("RGB", image.size)
    padded.paste(inside, (0, 4))
    return jpeg(padded)


def blurred(image: Image.Image) -> tuple[bytes, str]:
    return jpeg(image.filter(ImageFilter.GaussianBlur(1)))


def smaller(image: Image.Image) -> tuple[bytes, str]:
    return jpeg(image.crop((0, 0, 56, 42)))


def wider(image: Image.Image) -> tuple[bytes, str]:
    return jpeg(image.crop((0, 0, 64, 40)))


def trailing(image: Image.Image) -> tuple[bytes, str]:
    return jpeg(image)[0] + b"made by a generator", ".jpg"


def write_set(folder: Path, real: Save = jpeg, fake: Save = jpeg, count: int = PHOTOS) -> Path:
    """real/ and fake/ with pictures of their own, all by one and the same process but for how they are saved."""
    for label, save, offset in (("real", real, 0), ("fake", fake, 500)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            data, suffix = save(detailed(i + offset))
            (folder / label / f"{label[0]}{i:03d}{suffix}").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("planted", "fake", "says"),
    [
        ("format", png, "all the generated images are PNG, all the real ones are JPEG: format alone gives AUC 1.00"),
        ("extension", png, "all the generated images are .png"),
        (
            "tables",
            lambda image: jpeg(image, quality=85),
            "JPEG quality, all the generated images are 85, all the real",
        ),
        (
            "format",
            lambda image: jpeg(image, progressive=True),
            "all the generated images have process progressive, none of the real ones",
        ),
        ("size", smaller, "all the generated images are 56x42, all the real ones are 64x48"),
        ("aspect", wider, "aspect is 1.6 in the generated images, 1.333 in the real ones"),
        ("metadata", with_exif, "all the generated images have EXIF, none of the real ones"),
        ("bytes", trailing, "outside is 37 in the generated images, 18 in the real ones"),
        ("border", framed, "all the generated images have a border of one colour, none of the real ones"),
    ],
)
def test_a_planted_leak_is_found_and_reported(tmp_path: Path, planted: str, fake: Save, says: str) -> None:
    audit = audit_dataset(write_set(tmp_path / "set", fake=fake))
    probe = next(probe for probe in audit.probes if probe.name == planted)
    assert probe.auc > 0.95
    assert probe.ci95[0] > 0.55
    assert any(says in sentence for sentence in audit.findings), audit.findings
    assert [p.auc for p in audit.probes] == sorted((p.auc for p in audit.probes), reverse=True)


def test_a_blur_is_a_content_baseline_and_no_leak(tmp_path: Path) -> None:
    audit = audit_dataset(write_set(tmp_path / "set", fake=blurred))
    frequency = next(probe for probe in audit.probes if probe.name == "frequency")
    assert frequency.auc > 0.95
    assert audit.findings == []
    assert any(sentence.startswith("frequency alone gives AUC 1.00") for sentence in audit.floors)


def test_aligned_sets_have_no_leaks(tmp_path: Path) -> None:
    for name, save in (("jpeg", jpeg), ("png", png)):
        audit = audit_dataset(write_set(tmp_path / name, save, save))
        assert audit.findings == []
        assert {probe.name for probe in audit.probes if probe.kind == "wrapping"} >= {
            "format",
            "bytes",
            "size",
            "border",
        }
        assert all(probe.auc == 0.5 for probe in audit.probes if probe.kind == "wrapping")


def pair_row(
    i: int, *, twin: Image.Image | None = None, twin_scale: float = 1.0, kind: str = "caption"
) -> dict[str, object]:
    row = dict.fromkeys(PAIR_FEATURES)
    encoded = json.dumps({"image_scale": 0.5, "twin_scale": twin_scale})
    return row | {
        "pair_id": f"{i}-{kind}",
        "group": f"photo{i}",
        "image": {"bytes": jpeg(detailed(i))[0], "path": None},
        "image_label": "real",
        "twin": {"bytes": jpeg(twin or detailed(i + 500))[0], "path": None},
        "kind": kind,
        "caption": f"a thing of kind {i % 7}",
        "receipt": dict.fromkeys(PAIR_FEATURES["receipt"]) | {"encode": encoded},
    }


def write_pairs(folder: Path, rows: list[dict[str, object]]) -> Path:
    (folder / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=PAIR_FEATURES.arrow_schema)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=10)
    (folder / "README.md").write_text("# A card\n")
    return folder


def test_pairs_are_clean_unless_one_member_was_enlarged(tmp_path: Path) -> None:
    aligned = audit_dataset(write_pairs(tmp_path / "aligned", [pair_row(i) for i in range(PHOTOS)]))
    assert aligned.findings == []
    assert aligned.images == 2 * PHOTOS
    assert {p.groups for p in aligned.probes} == {PHOTOS}
    caption = next(probe for probe in aligned.probes if probe.name == "caption")
    assert caption.auc == 0.5  # both members have it
    enlarged = audit_dataset(write_pairs(tmp_path / "big", [pair_row(i, twin_scale=1.5) for i in range(PHOTOS)]))
    (sentence,) = enlarged.findings
    assert sentence.startswith(
        "all the generated images were upscaled, none of the real ones: scale alone gives AUC 1.00"
    )


def test_edits_have_separate_probes(tmp_path: Path) -> None:
    def patched(i: int) -> Image.Image:
        image = detailed(i)
        return image.filter(ImageFilter.GaussianBlur(2))

    rows = [pair_row(i) for i in range(PHOTOS)] + [pair_row(i, twin=patched(i), kind="edit") for i in range(PHOTOS)]
    audit = audit_dataset(write_pairs(tmp_path / "pairs", rows))
    assert audit.images == 3 * PHOTOS  # the photo stands in both rows, and counts once
    edited = next(probe for probe in audit.probes if probe.name == "edited: frequency")
    assert edited.auc > 0.9
    assert audit.findings == []


def image_rows(folder: Path, word: str, label_of: Callable[[int], object]) -> Path:
    (folder / "data").mkdir(parents=True)
    rows = []
    for i in range(2 * PHOTOS):
        caption = f"a thing of kind {i % 5}" + (f", {word}" if i % 2 else "")
        rows.append(
            {"image": {"bytes": jpeg(detailed(i))[0], "path": f"{i}.jpg"}, "label": label_of(i), "caption": caption}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def test_a_caption_word_is_found_in_rows_of_images(tmp_path: Path) -> None:
    audit = audit_dataset(image_rows(tmp_path / "set", "highly detailed", lambda i: "FAKE" if i % 2 else "REAL"))
    (sentence,) = audit.findings
    assert sentence.startswith(
        "the word 'detailed' occurs in all the captions of generated images, none of those of real"
    )
    assert audit_dataset(image_rows(tmp_path / "no", "", lambda i: "ai" if i % 2 else "nature")).findings == []


def test_a_sample_of_a_large_set_is_balanced_and_says_so(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    for extra in range(30):
        (tmp_path / "set" / "real" / f"more{extra}.jpg").write_bytes(jpeg(detailed(200 + extra))[0])
    audit = audit_dataset(tmp_path / "set", max_images=20)
    assert (audit.images, audit.total) == (20, 2 * PHOTOS + 30)
    assert "20 of 70 images" in audit.summary
    pairs = write_pairs(tmp_path / "pairs", [pair_row(i) for i in range(PHOTOS)])
    assert audit_dataset(pairs, max_images=20).images == 20
    assert audit_dataset(pairs, max_images=20) == audit_dataset(pairs, max_images=20)


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    (tmp_path / "set" / "fake" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    audit = audit_dataset(tmp_path / "set")
    assert audit.unread == {"generated": 1}
    assert "could not be read: 1 generated" in str(audit)


def test_the_command_prints_json_and_writes_it_to_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair_row(i) for i in range(6)])
    (folder / "run.json").write_text("{}")
    run(["audit", str(folder), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "audit.json").read_text())
    assert set(printed["probes"][0]) >= {"name", "auc", "ci95", "n", "groups"}
    with (folder / "README.md").open("a") as file:
        file.write("\n## Notes\n\nOur own.\n")
    run(["audit", str(folder)])  # the card has its section once, and what stands behind it stays
    card = (folder / "README.md").read_text()
    assert card.count("## Audit") == 1
    assert card.endswith("\n\n## Notes\n\nOur own.\n")
    assert "no leak of the wrapping was found" in card
    stored = read_audit(folder)
    assert stored is not None
    assert stored.to_json()["findings"] == printed["findings"]


def test_a_read_only_dataset_is_audited_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair_row(i) for i in range(6)])
    (folder / "run.json").write_text("{}")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vlm_detect.data.audit.write_json", refuse)
    run(["audit", str(folder), "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["probes"]
    assert captured.err.endswith("the audit cannot be saved there (Permission denied)\n")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: write_set(folder / "set", count=1), "fewer than two photos"),
        (lambda folder: image_rows(folder / "set", "", lambda i: "cat"), "not a known label"),
        (lambda folder: image_rows(folder / "set", "", lambda i: "real"), "nothing to compare"),
    ],
)
def test_a_set_without_labels_is_refused(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(UserError, match=says):
        audit_dataset(make(tmp_path))


def test_a_dataset_too_small_to_audit_is_still_written(tmp_path: Path) -> None:
    assert write_audit(write_pairs(tmp_path / "pairs", [pair_row(0)])) is None
    assert not (tmp_path / "pairs" / "audit.json").exists()


# --- the parts -----------------------------------------------------------------------------------------------------


def test_probes_of_nothing_find_nothing() -> None:
    """40 leak-free sets of 50 pairs, eight probes each: about one in twenty may have an interval beyond 0.5."""
    beyond = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y, groups = np.tile([0.0, 1.0], 50), np.arange(100) // 2
        shared = np.repeat(rng.normal(size=50), 2)  # what the two members of a pair have in common
        folds = make_folds(y, groups)
        lows = []
        for _ in range(8):
            scores = shared + rng.normal(size=100)
            lows.append(auc_interval(scores, y, groups, 0.05 / 8)[0])
        assert max(lows) < 0.55
        beyond += max(lows) > 0.5
        if seed < 3:  # the classifiers themselves take longer
            values = [{"a": float(v), "b": float(w)} for v, w in zip(shared, rng.normal(size=100), strict=True)]
            scores = cross_validate(values, y, folds)
            assert auc_interval(scores, y, groups, 0.05 / 8)[0] < 0.55
    assert beyond <= 5


def test_a_white_background_is_no_border() -> None:
    white = np.full((60, 60, 3), 255, np.uint8)
    white[20:40, 20:40] = np.asarray(photo(3, (20, 20)))
    assert not any(border(white).values())
    framed_pixels = np.asarray(detailed(1)).copy()
    framed_pixels[:, :3] = 0
    assert border(framed_pixels)["left"] == 3


def test_blocks_of_an_earlier_jpeg_show() -> None:
    image = detailed(5, (128, 128))
    again = Image.open(io.BytesIO(jpeg(image, quality=20)[0]))
    assert blockiness(np.asarray(again)) > blockiness(np.asarray(image)) + 0.1


def test_containers_name_their_contents() -> None:
    exif = read_container(with_exif(photo(0))[0])
    assert exif.metadata == {"EXIF": 1.0, "camera": "A camera"}
    plain = read_container(jpeg(photo(0))[0])
    assert (plain.metadata, plain.outside) == ({}, 18)
    assert plain.encoding["Huffman tables"] == "standard"
    assert read_container(jpeg(photo(0), optimize=True)[0]).encoding["Huffman tables"] == "own"
    webp = io.BytesIO()
    photo(0).save(webp, "WEBP", xmp=b"<x/>")
    assert read_container(webp.getvalue()).metadata == {"XMP": 1.0}


@pytest.mark.skipif(not DATA, reason="VLM_DETECT_DATA names no folder with development data")
@pytest.mark.parametrize(
    ("name", "leaks"),
    [
        ("traps/format_disco32", {"format", "extension", "bytes"}),
        ("traps/quality_shoes240", {"tables"}),
        ("traps/size_ml72", {"size"}),
        ("faces256", set()),
    ],
)
def test_published_sets(name: str, leaks: set[str]) -> None:
    audit = audit_dataset(Path(DATA or "") / name, max_images=60)
    found = {probe.name for probe in audit.probes if probe.kind == "wrapping" and probe.ci95[0] > 0.55}
    assert found >= leaks
    assert bool(leaks) == bool(audit.findings)


def test_every_wrapping_probe_has_a_sentence() -> None:
    from vlm_detect.data.audit import words

    assert set(words._REMEDY) == set(WRAPPING)
    assert {"real", "fake", "ai", "nature"} <= set(LABEL_NAMES)


def write_rows(folder: Path, label: object, rows: list[dict[str, object]], **columns: object) -> Path:
    features = Features({"image": ImageFeature(), "label": label, **columns})
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), folder / "train-00000.parquet")
    return folder


def test_captions_of_one_class_only_are_a_leak(tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": jpeg(detailed(i))[0], "path": None},
            "label": "fake" if i % 2 else "real",
            "caption": ["a dog in a park", "a second one"] if i % 2 else None,
        }
        for i in range(2 * PHOTOS)
    ]
    audit = audit_dataset(write_rows(tmp_path / "set", Value("string"), rows, caption=List(Value("string"))))
    assert len(audit.findings) == 1
    assert "caption alone gives AUC 1.00" in audit.findings[0]


def test_an_image_without_a_label_is_not_taken_for_the_last_class(tmp_path: Path) -> None:
    """In a ClassLabel -1 stands for none, as in test sets whose labels are kept back."""
    rows = [{"image": {"bytes": jpeg(detailed(i))[0], "path": None}, "label": i % 3 - 1} for i in range(6)]
    folder = write_rows(tmp_path / "set", ClassLabel(names=["real", "fake"]), rows)
    read = read_samples(folder, 100)
    assert [sample.label for sample in read.samples] == ["real", "generated"] * 2


def test_files_without_images_are_reported(tmp_path: Path) -> None:
    for name in ("broken", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        audit_dataset(tmp_path / "broken")
    table = pa.table({"image": [jpeg(detailed(0))[0]], "label": ["real"]})
    pq.write_table(table, tmp_path / "bare" / "a.parquet")
    with pytest.raises(UserError, match=r"rows need an image \{bytes, path\} and a label"):
        audit_dataset(tmp_path / "bare")


def test_a_fold_with_one_training_class_is_skipped() -> None:
    y = np.array([0.0, 0, 0, 1, 1, 1])
    groups = np.array([0, 0, 1, 1, 1, 2])
    folds = make_folds(y, groups)
    assert any(len(set(y[train])) == 1 for train, _ in folds)
    scores = cross_validate([{"a": float(i)} for i in range(6)], y, folds)
    assert np.isfinite(scores).all()
