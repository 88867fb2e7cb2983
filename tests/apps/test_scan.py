"""Scanning: every kind of argument, bad files among good ones, and resuming."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.apps.conftest import make_photo
from tests.models.tiny_chat import save_tiny
from tests.test_locks import holder, let_go
from vlm_detect.apps.operating_point import set_operating_point
from vlm_detect.apps.scan import scan, summary
from vlm_detect.apps.scan_rows import COLUMNS
from vlm_detect.errors import UserError
from vlm_detect.images import bounds
from vlm_detect.images.decode import FIRST_OF_SEVERAL
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.verdict import Odds
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.stats.calibration import Calibration


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
    specs = [str(tmp_path / "list.txt"), str(folder / "*.png"), str(folder), str(folder / "upload")]
    labels = scan(detector, specs, out=out, batch_size=3)
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 6  # each image once, though most were named twice
    for i, name in enumerate(["a.png", "b.png", "c.png", "upload"]):
        expected = detector(make_photo(i))
        assert rows[name]["p_fake"] == pytest.approx(expected.p_fake, abs=1e-5)
        assert rows[name]["label"] == expected.label
        assert rows[name]["model"] == detector.name
    errors = {name: row["error"] for name, row in rows.items() if row["label"] == "unreadable"}
    assert set(errors) == {"broken.jpg", "empty.png"}
    assert errors["empty.png"].startswith("empty")
    assert labels["unreadable"] == 2
    assert summary(labels).startswith("6 images: ")


def test_a_missing_path_is_an_error_after_the_others(
    detector: Detector, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    (tmp_path / "nothing").mkdir()
    specs = [
        "none.png",
        str(folder / "a.png"),
        str(tmp_path / "nothing"),
        str(folder / "*.heic"),
        str(folder / "b.png"),
    ]
    labels = scan(detector, specs, out=out)
    assert [Path(row["path"]).name for row in rows_of(out)] == ["a.png", "b.png"]
    assert (labels["missing"], labels["unreadable"]) == (3, 0)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 3
    assert all(name in line for name, line in zip(("none.png", "nothing: no images", "*.heic"), said, strict=True))


def test_files_without_an_image_suffix_are_counted(
    detector: Detector, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw.CR3", "deep/other.cr3", "notes.txt"):
        (folder / name).touch()
    scan(detector, [str(folder)])
    line = next(line for line in capsys.readouterr().err.splitlines() if "skipped" in line)
    assert line.startswith(f"{folder}: skipped 4 files without an image suffix: 2 .cr3, 1 ")
    assert {"1 .txt", "1 without a suffix"} < set(line.rpartition(": ")[2].split(", "))


def test_heic_photos_need_an_extra_that_the_error_names(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    pillow_heif.register_heif_opener()
    make_photo(1, (64, 48)).save(tmp_path / "IMG_1.HEIC", "HEIF")
    make_photo(1).save(tmp_path / "colour.ppm")
    make_photo(2).convert("L").save(tmp_path / "grey.pgm")
    make_photo(3).save(tmp_path / "film.j2k", "JPEG2000")
    assert scan(detector, [str(tmp_path)])["unreadable"] == 0
    monkeypatch.setattr(bounds, "readable_formats", lambda: ("JPEG", "PNG", "PPM", "JPEG2000"))
    labels = scan(detector, [str(tmp_path)], out=tmp_path / "rows.jsonl")
    (error,) = [row["error"] for row in rows_of(tmp_path / "rows.jsonl") if row["error"]]
    assert labels["unreadable"] == 1
    assert error == "needs_extra: HEIF cannot be read: pip install 'vlm-detect[heif]'"


def test_notes_about_a_file_are_in_its_row(detector: Detector, tmp_path: Path) -> None:
    frames = [make_photo(seed) for seed in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "plain.png")
    scan(detector, [str(tmp_path)], out=tmp_path / "rows.csv")
    rows = {Path(row["path"]).name: row for row in csv.DictReader((tmp_path / "rows.csv").open(newline=""))}
    assert rows["plain.png"]["notes"] == ""
    assert rows["moving.gif"]["notes"] == FIRST_OF_SEVERAL
    assert rows["moving.gif"]["label"] != "unreadable"


@pytest.mark.parametrize("name", ["v.htm", "v.xlsx", "verdicts", "v.csv.gz"])
def test_other_suffixes_are_refused_before_anything_is_done(detector: Detector, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--out .*: rows are written as \.csv, \.jsonl"):
        scan(detector, ["none.png"], out=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_table_of_an_earlier_version_gains_the_new_columns(detector: Detector, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    first = scan(detector, [str(folder)], out=out)
    before = list(csv.reader(out.read_text().splitlines()))
    with out.open("w", newline="") as file:
        csv.writer(file).writerows(row[: before[0].index("version") + 1] for row in before)
    make_photo(9).save(folder / "new.png")
    assert scan(detector, [str(folder)], out=out).total() >= first.total() + 1
    after = list(csv.reader(out.read_text().splitlines()))
    at = COLUMNS.index("threshold")  # unknown of rows without it; the other later columns had their default
    assert after[: len(before)] == [before[0], *([*row[:at], "", *row[at + 1 :]] for row in before[1:])]
    assert {len(row) for row in after} == {len(COLUMNS)}


def test_a_shape_that_the_model_refuses_is_a_row(tmp_path: Path) -> None:
    qwen = Detector(str(save_tiny("qwen2_5_vl", tmp_path / "model")), device="cpu")
    for name, size in {"a.png": (64, 64), "tall.png": (4, 1000), "z.png": (48, 64)}.items():
        make_photo(1, size).save(tmp_path / name)
    scan(qwen, [str(tmp_path / "*.png")], out=tmp_path / "rows.jsonl")
    rows = {Path(row["path"]).name: row for row in rows_of(tmp_path / "rows.jsonl")}
    assert rows["tall.png"]["label"] == "unreadable"
    assert rows["tall.png"]["error"].startswith("shape: 4x1000 pixels")
    assert all(rows[name]["p_fake"] is not None for name in ("a.png", "z.png"))
    with pytest.raises(UserError, match="image 2 of 2: 4x1000 pixels"):
        qwen.judge([tmp_path / "a.png", tmp_path / "tall.png"])


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


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_scan_interrupted_before_its_first_row_continues(
    detector: Detector, folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pictures: list) -> None:
        raise KeyboardInterrupt

    out = tmp_path / f"rows{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(detector, "judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan(detector, [str(folder)], out=out)
    labels = scan(detector, [str(folder)], out=out)
    assert out.read_text().count(f"{COLUMNS[-1]}") == (1 if suffix == ".csv" else 5)
    assert scan(detector, [str(folder)], out=out) == labels


def test_only_what_this_scan_names_is_counted(detector: Detector, folder: Path, tmp_path: Path) -> None:
    """A row of another folder, or of a file that has changed since, must not fail a build by --fail_on."""
    out = tmp_path / "rows.csv"
    scan(detector, [str(folder)], out=out)
    (folder / "broken.jpg").write_bytes((folder / "a.png").read_bytes())
    assert scan(detector, [str(folder / "broken.jpg")], out=out).keys() & {"unreadable"} == set()
    assert scan(detector, [str(folder / "empty.png")], out=out)["unreadable"] == 1


def test_names_with_invalid_text_or_line_breaks(detector: Detector, tmp_path: Path) -> None:
    names = [b"caf\xe9.png", "a\u2028b\x85c.png".encode(), b"d.png"]
    for seed, name in enumerate(names):
        try:
            make_photo(seed).save(path := tmp_path / os.fsdecode(name), "PNG")
        except OSError:
            pytest.skip("this file system takes no such name")
    for out in (tmp_path / "rows.jsonl", tmp_path / "rows.csv"):
        first = scan(detector, [str(tmp_path / "*.png"), os.fsdecode(b"n\xf6.png")], out=out)
        assert (first.total() - first["contradictory"], first["missing"]) == (4, 1)
        written = out.read_bytes()
        assert b"caf\\" in written
        assert scan(detector, [str(path), str(tmp_path / "*.png"), os.fsdecode(b"n\xf6.png")], out=out) == first
        assert out.read_bytes() == written


def test_names_are_safe_in_spreadsheets_and_terminals(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "-1.png", "'=2.png", "\x1b[31mred.png", "plain.png"]
    for i, name in enumerate(names):
        make_photo(i).save(name)
    first = scan(detector, names, out=Path("rows.csv"))
    with Path("rows.csv").open(newline="") as file:
        cells = [row["path"] for row in csv.DictReader(file)]
    assert cells == ["'=1+1.png", "'-1.png", "''=2.png", "\x1b[31mred.png", "plain.png"]
    before = Path("rows.csv").read_bytes()
    assert scan(detector, names, out=Path("rows.csv")) == first  # the names are known again
    assert Path("rows.csv").read_bytes() == before
    scan(detector, [*names, "\x1b]0;gone.png"])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\ufffd[31mred.png" in said.out
    assert "\ufffd]0;gone.png" in said.err


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "a,b\n1,2", "last will, no end of line", "path,x\n1"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_foreign_file_is_not_changed(
    detector: Detector, folder: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="not a file of scan rows"):
        scan(detector, [str(folder)], out=tmp_path / name)
    assert (tmp_path / name).read_text() == content


def test_an_unwritable_path_is_one_line(detector: Detector, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no/rows.csv: No such file"):
        scan(detector, [str(folder)], out=tmp_path / "no" / "rows.csv")


def test_verdicts_of_another_model_are_not_changed(detector: Detector, folder: Path, tmp_path: Path) -> None:
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
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["p_fake", "label", "image"]
    assert len(out.splitlines()) == 1 + len(rows)
    assert "unreadable  " in out


def test_a_json_file_is_one_document_that_resumes(
    detector: Detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.json"
    first = scan(detector, [str(folder)], out=out)
    before = json.loads(out.read_text())
    assert [list(row) for row in before] == [COLUMNS] * 5
    with monkeypatch.context() as patch:
        patch.setattr(detector, "judge", lambda pictures: [])  # nothing is left to judge
        assert scan(detector, [str(folder)], out=out) == first
    assert json.loads(out.read_text()) == before
    out.write_text("".join(json.dumps(row) + "\n" for row in before))  # as version 0.1 wrote it
    make_photo(9).save(folder / "new.png")
    scan(detector, [str(folder)], out=out)
    after = json.loads(out.read_text())
    assert after[:5] == before
    assert [Path(row["path"]).name for row in after[5:]] == ["new.png"]
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_a_threshold_is_no_band_and_no_guarantee_and_is_not_mixed(
    detector: Detector, folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [str(folder / "a.png"), str(folder / "b.png")]
    low, high = sorted(verdict.p_fake for verdict in detector(photos))
    guaranteed = Calibration(threshold=0.5, unsure_low=0.001, unsure_high=0.999, n=9, n_real=9, max_fpr=0.3, bound=0.3)
    monkeypatch.setattr(detector, "calibration", guaranteed)
    assert scan(detector, photos)["unsure"] == 2
    assert set_operating_point(detector, (low + high) / 2, 0.01).startswith("--threshold ")  # it comes first
    out = tmp_path / f"rows{suffix}"
    labels = scan(detector, photos, out=out)
    assert (labels["generated"], labels["real"], labels["unsure"]) == (1, 1, 0)
    assert "are called generated" not in summary(labels, detector.calibration)
    written = out.read_bytes()
    assert scan(detector, photos, out=out) == labels
    assert out.read_bytes() == written
    detector.calibration = guaranteed.at_threshold(0.7)
    with pytest.raises(UserError, match=r"holds verdicts with --threshold 0\.\d+, not 0.7; give another --out"):
        scan(detector, photos, out=out)


def test_two_scans_into_one_file(detector: Detector, tmp_path: Path) -> None:
    make_photo(1).save(tmp_path / "a.png")
    first = holder(tmp_path / "rows.csv")
    with pytest.raises(UserError, match=rf"rows.csv is held by another run \(process {first.pid} on"):
        scan(detector, [str(tmp_path / "a.png")], out=tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()
    let_go(first)
    scan(detector, [str(tmp_path / "a.png")], out=tmp_path / "rows.csv")


QUIET = "Its noise is weaker than in nine of ten photos of this size."
LOUD = "Its noise is stronger than in nine of ten photos of this size."


@pytest.fixture
def reasoning(detector: Detector, measures: MeasureCalibration, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A detector that says the same three sentences of every image."""
    monkeypatch.setattr(detector, "measures", measures)
    said = f"{LOUD} {QUIET} It is a dog, isn't it?"
    monkeypatch.setattr(detector.engine, "continue_prompts", lambda images, *_: [[said] for _ in images])
    return detector


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_with_reasons(reasoning: Detector, folder: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows{suffix}"
    first = scan(reasoning, [str(folder)], out=out, explain=True)
    written = out.read_bytes()
    assert scan(reasoning, [str(folder)], out=out, explain=True) == first
    assert out.read_bytes() == written, "what has reasons is judged again"
    rows = rows_of(out) if suffix == ".jsonl" else list(csv.DictReader(out.open(newline="")))
    for row in rows:
        reasons = json.loads(row["reasons"] or "null") if suffix == ".csv" else row["reasons"]
        if row["label"] == "unreadable":
            assert (row["explanation"], reasons) == ("", None)
            continue
        assert row["explanation"].endswith("It is a dog, isn't it?")
        verdict = reasoning(Path(row["path"]))
        assert reasons == [reason.to_json() for reason in verdict.check(row["explanation"]).reasons]
        assert {"text", "kind", "box", "status", "value", "percentile"} <= reasons[0].keys()
        assert [reason["status"] for reason in reasons[:3]] == ["confirmed", "contradicted", "unchecked"]


def test_only_confirmed_reasons_are_shown(
    reasoning: Detector, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan(reasoning, [str(folder / "a.png")], explain=True)
    shown = capsys.readouterr().out
    assert f"1. {LOUD} [confirmed by measurement (noise_strength " in shown
    assert f"2. {QUIET} [contradicted by measurement (noise_strength " in shown
    assert "3. It is a dog, isn't it? [not checked]" in shown
    scan(reasoning, [str(folder / "a.png")], explain=True, only_confirmed=True)
    shown = capsys.readouterr().out
    assert f"1. {LOUD}" in shown
    assert "contradicted" not in shown
    assert "dog" not in shown


def test_verdicts_without_reasons_are_not_mixed_with_others(reasoning: Detector, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    scan(reasoning, [str(folder / "a.png")], out=out)
    written = out.read_bytes()
    with pytest.raises(UserError, match="holds verdicts without reasons; give another --out"):
        scan(reasoning, [str(folder)], out=out, explain=True)
    assert out.read_bytes() == written


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_verdicts_that_depend_on_copies(
    model_folder: Path, folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that judges by the width alone is unsure of everything, and each row says why and by how many copies."""
    monkeypatch.setattr(
        "vlm_detect.infer.detector.read_odds",
        lambda _, images: [Odds((odds := 1.0 if image.width < 30 else -1.0, odds), 0.0) for image in images],
    )
    out = tmp_path / f"rows{suffix}"
    judge = Detector(str(model_folder), views=2)
    assert scan(judge, [str(folder)], out=out)["unsure"] == 3
    read = list(csv.DictReader(out.open())) if suffix == ".csv" else rows_of(out)
    unsure = [row for row in read if row["label"] == "unsure"]
    assert {str(row["views"]) for row in unsure} == {"2"}
    assert all("generated when scaled to 0.75" in row["why_unsure"] for row in unsure)
    before = out.read_bytes()
    assert scan(judge, [str(folder)], out=out)["unsure"] == 3
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="holds verdicts with --views 2, not 0"):
        scan(Detector(str(model_folder)), [str(folder)], out=out)
