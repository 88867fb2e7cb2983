"""SRC in all its forms, and one clear line where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.data.factories import write_photos
from vlm_detect.data import image_sets, labelled_rows
from vlm_detect.data.dataset_rows import DatasetRows
from vlm_detect.data.selection import Selection
from vlm_detect.data.sources import SourcePhoto, find_images, open_source
from vlm_detect.errors import LOCAL_PATHS_ALLOWED, UserError
from vlm_detect.images.decode import ImageRejected


def names(spec: str, limit: int | None = None) -> list[str]:
    source = open_source(spec, limit)
    return [Path(p.path_or_id).name for p in source.read(0, len(source)) if isinstance(p, SourcePhoto)]


def test_folder_glob_list_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_photos(tmp_path / "photos", 3)
    write_photos(tmp_path / "photos" / "below", 1, suffix=".JPG")
    write_photos(tmp_path / "photos" / ".thumbnails", 1)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    assert names(str(tmp_path / "photos")) == ["photo00.JPG", "photo00.png", "photo01.png", "photo02.png"]
    assert names(str(tmp_path / "photos"), limit=2) == ["photo00.JPG", "photo00.png"]
    assert names(str(tmp_path / "photos" / "*1.png")) == ["photo01.png"]
    assert names(str(tmp_path / "**" / "*.JPG")) == ["photo00.JPG"]
    assert names(str(paths[1])) == ["photo01.png"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"photos/photo02.png\n\n{paths[0]}\n")
    assert names(str(listed)) == ["photo02.png", "photo00.png"]
    monkeypatch.chdir(tmp_path)
    assert names("photos/photo*.png") == ["photo00.png", "photo01.png", "photo02.png"]


def test_links_are_followed_except_circular_ones(tmp_path: Path) -> None:
    write_photos(tmp_path / "elsewhere", 2)
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "real").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "other").symlink_to(folder / "b")
    (folder / "b" / "other").symlink_to(folder / "a")
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "photo00.png")
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    for name in ("itself", "itself.png"):
        (folder / name).symlink_to(name)
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == [
        *(f"a/other/real/photo0{i}.png" for i in range(2)),
        *(f"a/real/photo0{i}.png" for i in range(2)),
        *(f"b/other/real/photo0{i}.png" for i in range(2)),
        *(f"b/real/photo0{i}.png" for i in range(2)),
        "file.png",
    ]


def test_skipped_files_are_counted_by_suffix(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name\nphoto00.png\n")
    for name in ("a.CR3", "b.cr3", "c", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    assert open_source(str(tmp_path)).skipped == {".cr3": 2, "without a suffix": 1, "broken link": 1}
    (tmp_path / "0_real").mkdir()
    (tmp_path / "photo00.png").rename(tmp_path / "0_real" / "photo00.png")
    assert image_sets.open_image_set("folders", str(tmp_path)).skipped[".cr3"] == 2
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.cr3").touch()
    with pytest.raises(UserError, match=r"no images in this folder .* contains 1 \.cr3"):
        open_source(str(tmp_path / "only"))


def test_every_format_that_is_read_is_found(tmp_path: Path) -> None:
    suffixes = "HEIF apng avif dib heic j2k jfif jp2 jpx pbm pgm pnm ppm tiff"
    for suffix in suffixes.split():
        (tmp_path / f"a.{suffix}").touch()
    assert [path.suffix[1:] for path in find_images(tmp_path)] == suffixes.split()


def test_any_part_can_be_read_alone(tmp_path: Path) -> None:
    write_photos(tmp_path, 5)
    source = open_source(str(tmp_path))
    assert [Path(p.path_or_id).name for p in source.read(3, 9) if isinstance(p, SourcePhoto)] == [
        "photo03.png",
        "photo04.png",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_next_to_the_images(tmp_path: Path, kind: str) -> None:
    write_photos(tmp_path / "below", 2)
    if kind == "jsonl":
        row = {"file_name": "below/photo01.png", "group": "g", "license": "CC0", "caption": "a cat", "jpeg_quality": 90}
        (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    else:
        (tmp_path / "metadata.csv").write_text(
            "file_name,group,licence,caption,jpeg_quality\nbelow/photo01.png,g,CC0,a cat,90\n"
        )
    first, second = open_source(str(tmp_path)).read(0, 2)
    assert isinstance(first, SourcePhoto)
    assert isinstance(second, SourcePhoto)
    assert (first.group, first.caption) == (None, None)
    assert (second.group, second.licence, second.caption, second.jpeg_quality) == ("g", "CC0", "a cat", 90)
    assert second.data == (tmp_path / "below" / "photo01.png").read_bytes()


def test_tables_as_spreadsheets_and_editors_write_them(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    for name, text in (
        ("csv", "file_name,group\nphoto00.png,g\n"),
        ("jsonl", '{"file_name": "photo00.png", "group": 1}'),
    ):
        path = tmp_path / f"metadata.{name}"
        path.write_text(f"\ufeff{text}\n\n", encoding="utf-8")
        (photo,) = open_source(str(tmp_path)).read(0, 1)
        assert isinstance(photo, SourcePhoto)
        assert photo.group == {"csv": "g", "jsonl": "1"}[name]
        path.unlink()


def test_other_metadata_are_another_list(tmp_path: Path) -> None:
    """Captions that were mended between two calls must not be mixed with the old ones."""
    write_photos(tmp_path, 2)
    found = []
    for caption in (None, "a cat", "a dog", "a dog"):
        if caption:
            (tmp_path / "metadata.csv").write_text(f"file_name,caption\nphoto00.png,{caption}\n")
        found.append(open_source(str(tmp_path)).fingerprint)
    assert len(set(found)) == 3
    assert found[2] == found[3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((f"file_name,jpeg_quality\nphoto00.png,{q}\n", "give 1 to 100") for q in ("high", "0", "500", "nan", "inf")),
        (f"file_name,caption\nphoto00.png,{200_000 * 'x'}\n", "not a table with a column file_name"),
        ("name\nphoto00.png\n", "not a table with a column file_name"),
        ("file_name,caption\nphoto00.png,a dog, running\n", "photo00.png has more values than columns"),
    ],
)
def test_bad_metadata_are_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    write_photos(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        list(open_source(str(tmp_path)).read(0, 1))


def test_a_vanished_file_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    (tmp_path / "list.txt").write_text("absent.png\nphoto01.png\n")
    absent, present = open_source(str(tmp_path / "list.txt")).read(0, 2)
    assert isinstance(absent, tuple)
    assert isinstance(absent[1], ImageRejected)
    assert isinstance(present, SourcePhoto)


@pytest.fixture
def rows(tmp_path: Path) -> datasets.Dataset:
    paths = write_photos(tmp_path / "files", 3)
    table = {"picture": [str(path) for path in paths], "caption": ["a", "b", ""], "other": [1, 2, 3]}
    return datasets.Dataset.from_dict(table).cast_column("picture", datasets.Image())


def test_dataset_folders(tmp_path: Path, rows: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "parquet" / "data" / "test-0.parquet")
    specs = (f"{tmp_path / 'disk'}", f"{tmp_path / 'parquet'}::test:picture")
    for spec in specs[1:]:  # its parquet has the paths of the images and not their bytes
        outside = list(open_source(spec, limit=2).read(0, 5))
        assert {found[1].reason for found in outside if not isinstance(found, SourcePhoto)} == {"outside"}
    monkeypatch.setenv(LOCAL_PATHS_ALLOWED, "1")
    for spec in specs:
        photos = list(open_source(spec, limit=2).read(0, 5))
        assert [p.caption for p in photos if isinstance(p, SourcePhoto)] == ["a", "b"]
        assert isinstance(photos[0], SourcePhoto)
        assert photos[0].data == (tmp_path / "files" / "photo00.png").read_bytes()
        assert photos[0].path_or_id.endswith("#0")
    with pytest.raises(UserError, match="no image column other"):
        open_source(f"{tmp_path / 'parquet'}::test:other")
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        open_source(f"{tmp_path / 'parquet'}::nosuch")


def test_a_missing_source_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("words")
    (tmp_path / "empty.txt").write_text("\n")
    for spec, says in {
        str(tmp_path): "no images in this folder",
        str(tmp_path / "absent"): "no such file or folder",
        str(tmp_path / "*.png"): "no images found",
        str(tmp_path / "empty.txt"): "no images found",
        "photos": "no such file or folder",
    }.items():
        with pytest.raises(UserError, match=says) as caught:
            open_source(spec)
        assert "\n" not in str(caught.value)
        assert spec in str(caught.value)


def test_a_hub_id_without_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "dataset_info", unreachable)
    with pytest.raises(UserError, match=r"owner/name: neither a local folder .*Name or service not known.* network"):
        open_source("owner/name::train")


def test_bad_metadata_is_reported(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"group": "no name"}\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl: not a table with a column file_name"):
        list(open_source(str(tmp_path)).read(0, 1))


def test_streamed_rows_equal_those_of_the_complete_set(tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in write_photos(tmp_path, 6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": list("abcdef")}, features=features)
    whole, streamed = DatasetRows(rows, "rows"), DatasetRows(rows.to_iterable_dataset(), "rows")
    for wanted in ([], [0], [1, 2, 5]):
        assert list(streamed.images(wanted)) == list(whole.images(wanted))
        assert [data for _, data in whole.images(wanted)] == [images[i]["bytes"] for i in wanted]
    assert list(streamed.facts()) == list(whole.facts()) == [{"label": letter} for letter in "abcdef"]


def test_a_hub_set_is_streamed_only_as_far_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in write_photos(tmp_path, 12)]
    labels = ["real", "real", "real", "fake", "real", "fake", "fake"] + ["real"] * 5
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    asked: list[Any] = []

    def splits(spec: str, *, streaming: bool, **columns: str) -> dict[str, DatasetRows]:
        asked.append((spec, streaming))
        return {"train": DatasetRows(rows.to_iterable_dataset(), spec)}

    monkeypatch.setattr(labelled_rows, "open_all_splits", splits)
    monkeypatch.setattr(labelled_rows, "open_streamed_splits", lambda spec, **columns: None)  # no parquet files
    found = image_sets.open_image_set("hub", "owner/name", Selection(limit=4))
    assert asked == [("owner/name", True)]
    assert [entry.label for entry in found.entries] == ["real", "real", "generated", "generated"]
    assert [data for _, data in found.read(1, 4)] == [images[i]["bytes"] for i in (1, 3, 5)]
    assert {entry.split for entry in found.entries} == {None}  # a lone split is ours to divide
