"""Scanning: every kind of argument, bad files among good ones, and resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.chat.conftest import make_photo
from vlm_detect.chat.scan import COLUMNS, scan, summary
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, one of them without a suffix, and two files that are none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "deep/c.png", "upload"]):
        make_photo(i).save(tmp_path / "in" / name, "PNG")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    return tmp_path / "in"


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folders_globs_lists_and_files(detector: Detector, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("in/a.png\nin/deep/c.png\n")
    out = tmp_path / "rows.jsonl"
    specs = [str(tmp_path / "list.txt"), str(folder / "*.png"), str(folder), str(folder / "upload"), "none.png"]
    labels = scan(detector, specs, out=out, batch_size=3)
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 7  # each image once, though most were named twice
    for i, name in enumerate(["a.png", "b.png", "c.png", "upload"]):
        expected = detector(make_photo(i))
        assert rows[name]["p_fake"] == pytest.approx(expected.p_fake, abs=1e-5)
        assert rows[name]["label"] == expected.label
        assert rows[name]["model"] == detector.name
    errors = {name: row["error"] for name, row in rows.items() if row["label"] == "unreadable"}
    assert set(errors) == {"broken.jpg", "empty.png", "none.png"}
    assert errors["empty.png"].startswith("empty")
    assert labels["unreadable"] == 3
    assert summary(labels).startswith("7 images: ")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_scan_resumes_and_judges_what_is_new_or_changed(
    detector: Detector, folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"rows{suffix}"
    first = scan(detector, [str(folder)], out=out)
    with out.open("ab") as file:
        file.write(b'{"path": "cut off in the mid')
    judged: list[int] = []
    judge = detector.judge
    monkeypatch.setattr(detector, "judge", lambda pictures: judged.append(len(pictures)) or judge(pictures))
    again = scan(detector, [str(folder)], out=out)
    assert (sum(judged), again) == (0, first)
    make_photo(7).save(folder / "new.png")
    make_photo(8).save(folder / "a.png")
    last = scan(detector, [str(folder)], out=out)
    assert sum(judged) == 2
    assert last["unreadable"] == first["unreadable"]
    text = out.read_text()
    n_rows = len(list(csv.reader(text.splitlines()))) - 1 if suffix == ".csv" else len(text.splitlines())
    assert n_rows == 7
    assert "cut off" not in text


def test_a_foreign_file_is_no_earlier_scan(detector: Detector, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not the rows of a scan"):
        scan(detector, [str(folder)], out=tmp_path / "x.csv")
    out = tmp_path / "rows.jsonl"
    scan(detector, [str(folder / "a.png")], out=out)
    out.write_text(out.read_text().replace(json.dumps(detector.name), '"other"'))
    with pytest.raises(UserError, match="holds verdicts of other"):
        scan(detector, [str(folder)], out=out)


def test_the_forms_on_stdout(detector: Detector, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan(detector, [str(folder)], form="csv")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0]) == COLUMNS
    scan(detector, [str(folder)], form="table")
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["p_fake", "label", "image"]
    assert len(out.splitlines()) == 1 + len(rows)
    assert "unreadable  " in out
    assert "5 of 5 images" in err
