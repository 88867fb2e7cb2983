"""`vlm-detect scan` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.scripts.here import run_verb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in ("orange", "navy"):
        Image.new("RGB", (48, 48), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "bad.jpg").write_text("no image")
    return tmp_path


def test_json_lines_and_the_exit_status(folder: Path) -> None:
    done = run_verb("scan", "--model", "nano", folder, "--json")
    assert done.returncode == 0, done.stderr
    rows = {Path(row["path"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {"orange.png", "navy.png", "bad.jpg"}
    assert rows["bad.jpg"]["label"] == "unreadable"
    assert "1 unreadable" in done.stderr
    labels = {row["label"] for row in rows.values()}
    for label in ("generated", "unsure", "unreadable"):
        done = run_verb("scan", "--model", "nano", folder, "--fail_on", label)
        assert done.returncode == int(label in labels), label


def test_a_table_in_a_file_is_resumed(folder: Path) -> None:
    out = folder / "rows.csv"
    first = run_verb("scan", "--model", "nano", folder, "--out", out)
    assert (first.returncode, first.stdout) == (0, "")
    before = out.read_text()
    again = run_verb("scan", "--model", "nano", folder, "--out", out)
    assert out.read_text() == before
    assert again.stderr.splitlines()[-2:] == first.stderr.splitlines()[-2:]
    counted, caveat = again.stderr.splitlines()[-2:]
    assert again.stderr.startswith("loading nano ...\n")
    assert counted.startswith("3 images: ")
    assert caveat.startswith("these labels mean little: nano was never finetuned or calibrated")


def test_bad_input(folder: Path) -> None:
    unknown = run_verb("scan", "--model", "nano", folder, "--fail_on", "fake")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert run_verb("scan", "--model", "nano", folder / "bad.jpg").returncode == 1  # nothing could be judged
    mixed = run_verb("scan", "--model", "nano", folder, folder / "none.png", "--csv")
    assert (mixed.returncode, "none.png: no such file" in mixed.stderr) == (1, True)
    assert "orange.png" in mixed.stdout
    assert "none.png" not in mixed.stdout
    form = run_verb("scan", "--model", "nano", folder, "--out", folder / "v.xlsx")
    assert (form.returncode == 2, form.stderr.count("\n"), "v.xlsx" in form.stderr) == (True, 1, True)
    assert run_verb("scan", "--model", "nano").returncode == 2
    copies = run_verb("scan", "--model", "nano", folder, "--views", 7)
    assert (copies.returncode, "--views 7: there are 6 copies" in copies.stderr) == (2, True)
    rate = run_verb("scan", "--model", "nano", folder, "--max_fpr", 0)
    assert (rate.returncode, "--max_fpr 0.0: give a part of photos" in rate.stderr) == (2, True)
    assert run_verb("scan", "--model", "nano", folder, "--json", "--csv").returncode == 2
