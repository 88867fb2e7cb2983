"""The conversation in the terminal: piped lines, commands, and Ctrl-C."""

from __future__ import annotations

import io
import json
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.apps.conftest import make_photo
from vlm_detect.apps import terminal
from vlm_detect.apps.session import Session, details
from vlm_detect.apps.terminal_image import escape_sequence, protocol_of
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.measures.registry import measure_image
from vlm_detect.places import PLACES


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file whose answers are short; the random model ends no text by itself."""
    monkeypatch.setattr("vlm_detect.infer.detector.ANSWER_TOKENS", 8)
    for name in ("stream_answer", "stream_explanation"):
        method = partial(shortened, getattr(Detector, name))
        monkeypatch.setattr(Detector, name, partialmethod(method))
    monkeypatch.chdir(tmp_path)
    make_photo(3).save(tmp_path / "photo.png")
    return "photo.png"


def shortened(method, self, image, asked, n=8, *rest):
    return method(self, image, asked, min(n, 8), *rest)


def converse(detector: Detector, image: str, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    terminal.converse(detector, image)


def test_piped_questions_get_one_answer_per_line(detector, image, monkeypatch, capsys) -> None:
    converse(detector, image, "What?\n\nWhy?\n/quit\nnever asked\n", monkeypatch)
    out = capsys.readouterr().out
    verdict = detector(make_photo(3))
    leaning = f"photo.png: no verdict, it leans to {verdict.label}, p_fake {verdict.p_fake:.2f}: "
    assert out.startswith(f"{leaning}{detector.name} was never finetuned or calibrated")
    shown = "".join(c for c in out if c.isprintable())
    for answer in (verdict.explain(8), verdict.ask("What?", 8), verdict.ask("Why?", 8)):
        assert "".join(c for c in answer if c.isprintable()) in shown
    assert "> " not in out


def test_commands(detector, image, monkeypatch, capsys, tmp_path) -> None:
    make_photo(4, (24, 24)).save("other.png")
    lines = [
        "What?",
        "/save a.json",
        "/reset",
        "/save a.txt",
        "/map",
        "/detect dog",
        "/point dog",
        "/image other.png",
        "/map m.png",
        "/help",
        "/save b.json",
    ]
    converse(detector, image, "\n".join(lines), monkeypatch)
    first, second = json.loads(Path("a.json").read_text()), json.loads(Path("b.json").read_text())
    assert [turn["question"] for turn in first["turns"]] == ["What?"]
    assert "> What?" not in Path("a.txt").read_text()
    assert (second["image"], second["turns"]) == ("other.png", [])
    assert second["verdict"]["p_fake"] == pytest.approx(detector(make_photo(4, (24, 24))).p_fake, abs=1e-5)
    assert Image.open("photo_map.png").size == (30, 20)
    assert Image.open("m.png").size == (24, 24)
    out, err = capsys.readouterr()
    assert err == ""
    boxes = [box.pixels(30, 20) for box in detector(make_photo(3)).detect("dog")]
    assert f"dog: {len(boxes)} found" in out
    assert boxes
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        assert f"  {number}. from ({left}, {top}) to ({right}, {bottom})" in out
    points = detector(make_photo(3)).point("dog")
    assert f"  1. at ({points[0].x * 30:.0f}, {points[0].y * 20:.0f})" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/image none.png", "none.png: no such file"),
        ("/image", "argument is missing"),
        ("/detect", "argument is missing"),
        ("/detect " + "x" * 600, "context is 512"),
        ("/frobnicate", "unknown command"),
        ("/save no/where.txt", "cannot be written"),
        ("/map no/where.png", "cannot be written"),
        ("x" * 600, "context is 512"),
        ("caf\udce9", "not UTF-8"),
    ],
)
def test_errors_are_shown_and_the_conversation_continues(detector, image, monkeypatch, capsys, line, message) -> None:
    converse(detector, image, f"{line}\n/save after.json\n", monkeypatch)
    assert message in capsys.readouterr().err
    assert json.loads(Path("after.json").read_text())["image"] == "photo.png"


def test_piped_bytes_that_are_not_text(detector, image, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="not in utf-8: convert them"):
        terminal.converse(detector, image)


def test_ctrl_c_stops_the_answer_and_not_the_program(detector, image, monkeypatch, capsys) -> None:
    stream = Detector.stream_answer

    def interrupted(self, *arguments):
        yield from list(stream(self, *arguments))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "stream_answer", interrupted)
    session = Session(detector, image)
    terminal._guarded(session, "What?", interactive=True)
    assert capsys.readouterr().out.endswith(" [stopped]\n")
    (turn,) = session.turns
    assert turn.stopped
    assert detector.ask is not None
    monkeypatch.setattr(Detector, "stream_answer", stream)
    terminal._guarded(session, "Why?", interactive=True)
    assert not session.turns[1].stopped
    monkeypatch.setattr(Detector, "stream_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):  # of a program in a pipe it ends the program
        terminal._guarded(session, "What?", interactive=False)


def test_one_answer_and_nothing_else(detector, image, capsys) -> None:
    terminal.answer_once(detector, image, "What?")
    shown = detector.ask(make_photo(3), "What?", 8)
    assert capsys.readouterr().out == "".join(c for c in shown if c.isprintable() or c == "\n") + "\n"


def test_text_cannot_steer_the_terminal(capsys) -> None:
    terminal._stream(["a\x1b[2J", "b\x07\nc"])
    assert capsys.readouterr().out == "a[2Jb\nc\n"


def test_images_are_shown_where_the_terminal_can() -> None:
    assert protocol_of({"TERM": "xterm-kitty"}) == protocol_of({"KITTY_WINDOW_ID": "1"}) == "kitty"
    assert protocol_of({"TERM_PROGRAM": "iTerm.app"}) == protocol_of({"TERM_PROGRAM": "WezTerm"}) == "iterm"
    assert protocol_of({"TERM": "xterm-256color"}) is protocol_of({"TERM": "xterm-kitty", "TMUX": "x"}) is None
    kitty = escape_sequence(make_photo(0, (900, 700)), "kitty")
    parts = kitty.removesuffix("\n").split("\x1b\\")[:-1]
    assert parts[0].startswith("\x1b_Ga=T,f=100,m=1;")
    assert parts[-1].startswith("\x1b_Gm=0;")
    assert all(len(part.split(";")[1]) <= 4096 for part in parts)
    assert escape_sequence(make_photo(0), "iterm").startswith("\x1b]1337;File=inline=1")


def test_each_sentence_of_an_explanation_has_its_status(detector, image, capsys, monkeypatch, measures) -> None:
    said = ["AI-generated. Its noise is weaker than in ", "nine of ten photos of this size. A dog."]
    monkeypatch.setattr(detector, "measures", measures)
    monkeypatch.setattr(Detector, "stream_explanation", lambda self, *_: iter(said))
    session = Session(detector, image)
    terminal._guarded(session, "/verdict", interactive=True)
    shown = capsys.readouterr().out.splitlines()
    (measured_line,) = [line for line in shown if "by measurement (noise_strength " in line]
    assert measured_line.startswith("  1. Its noise is weaker than in nine of ten photos of this size. [con")
    assert "  2. A dog. [not checked]" in shown


def test_only_what_a_measurement_confirms(detector, image, capsys, monkeypatch, measures) -> None:
    monkeypatch.setattr(detector, "measures", measures)
    loudest = PLACES[int(measure_image(np.asarray(make_photo(3))).grid("noise_strength").argmax())]
    louder = f"Its noise is stronger than in half of all photos, above all at the {loudest}."
    said = ["AI-generated. Its noise is weaker than in nine of ten photos of this size. ", louder, " A dog."]
    monkeypatch.setattr(Detector, "stream_explanation", lambda self, *_: iter(said))
    session = Session(detector, image, only_confirmed=True)
    for line in ("/verdict", "/boxes b.png", "/save a.json"):
        terminal._guarded(session, line, interactive=True)
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("  1. ")] == [
        f"  1. {louder} [{session.explanation.reasons[0].note}, supports real]"
    ]
    assert "A dog" not in shown
    saved = json.loads(Path("a.json").read_text())
    assert saved["explanation"] == louder
    assert [reason["status"] for reason in saved["reasons"]] == ["confirmed"]
    assert min(Image.open("b.png").size) >= 288

    monkeypatch.setattr(Detector, "stream_explanation", lambda self, *_: iter(["A dog."]))
    terminal._guarded(session, "/verdict", interactive=True)
    assert "It gives no reason that a measurement confirms" in capsys.readouterr().out


def test_notes_about_the_file_are_shown_under_the_verdict(detector: Detector, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "navy")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    session = Session(detector, str(tmp_path / "moving.gif"))
    assert any("the file: an animation" in line for line in details(session.verdict, ()))
