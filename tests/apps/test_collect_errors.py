"""Wrong verdicts, collected in the layout that `adapt` reads."""

from __future__ import annotations

import csv
from hashlib import sha256
from pathlib import Path

import pytest

from tests.apps.conftest import make_photo
from tests.progressed import progress_of
from vlm_detect.apps import collect_errors as module
from vlm_detect.apps.collect_errors import Mark, collect_errors, read_marks
from vlm_detect.data.known_images import known_images
from vlm_detect.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("=1.png", "b.png", "c.jpg")]
    for i, path in enumerate(paths):
        make_photo(i).save(path)
    return paths


def save_marks(file: Path, *rows: tuple[object, str, str]) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("path", "label", "sha256"), *rows])
    return file


def test_what_adapt_reads(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = progress_of(module, monkeypatch)
    monkeypatch.chdir(tmp_path)
    digest = sha256(photos[0].read_bytes()).hexdigest()
    file = save_marks(tmp_path / "marks.csv", ("'=1.png", "real", digest), ("b.png", "real", ""))
    marks = [*read_marks(file), Mark(photos[2], "generated")]
    for _ in range(2):  # what is reported twice is there once
        assert collect_errors(marks, tmp_path / "errors") == {"real": 2, "generated": 1}
    known = known_images("errors")
    assert sorted((sha256(one.data).hexdigest(), one.is_generated) for one in known) == sorted(
        (sha256(path.read_bytes()).hexdigest(), path.suffix == ".jpg") for path in photos
    )
    assert shown == [("check the marked images", 3), ("copy", 3)] * 2


def test_nothing_is_copied_where_a_mark_is_wrong(photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = Mark(photos[0], "real")
    for mark, message in {
        Mark(tmp_path / "gone.png", "real"): "no such file; run this where the scan ran",
        Mark(broken, "real"): "broken.png: not_an_image",
        Mark(photos[1], "real", "0" * 64): "is not the image that was judged",
        Mark(photos[0], "generated"): "remove one",
    }.items():
        with pytest.raises(UserError, match=message):
            collect_errors([good, mark], tmp_path / "errors")
    assert not (tmp_path / "errors").exists()
    collect_errors([good], tmp_path / "errors")
    with pytest.raises(UserError, match="says otherwise; remove one of them"):
        collect_errors([Mark(photos[0], "generated")], tmp_path / "errors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,real\n", "line 2 has no path, label"),
        ("path,label,sha256\na.png,fake,\n", "line 2 has no path, label"),
        ("path,label,sha256\n", "has no marks"),
    ],
)
def test_files_that_are_no_marks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "marks.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_marks(tmp_path / "marks.csv")
