"""`vlm-detect chat` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.scripts.here import run_verb


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48), "orange").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_one_answer(photo: Path) -> None:
    done = run_verb("chat", "--model", "nano", photo, "What is in the picture?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "p_fake" not in done.stdout


def test_a_piped_conversation(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    done = run_verb("chat", "--model", "nano", photo, stdin="What is it?\n/map\n/save talk.json\n")
    assert done.returncode == 0, done.stderr
    assert "p_fake" in done.stdout.splitlines()[0]
    assert (photo.parent / "photo_map.png").is_file()
    assert (photo.parent / "talk.json").is_file()


def test_bad_input_is_one_line(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    for arguments, message in [
        ([tmp_path / "none.jpg", "What?"], "no such file"),
        ([tmp_path / "text.jpg", "What?"], "not_an_image"),
        ([photo, "What?", "--adapter", tmp_path], "no adapter_config.json"),
        ([photo, "  "], "the question is empty"),
    ]:
        done = run_verb("chat", "--model", "nano", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert message in done.stderr
    assert run_verb("chat").returncode == 2
