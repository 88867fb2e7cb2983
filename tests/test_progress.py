"""A bar on a terminal, lines in a log, nothing where it is quiet or soon done."""

from __future__ import annotations

import io
import sys

import pytest

from vlm_detect import progress as module
from vlm_detect.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    assert list(progress([5, 6, 7], "decode", unit="img")) == [5, 6, 7]
    with progress(desc="scan", total=100, initial=40, unit="img") as bar:
        bar.update(20)
    with progress(desc="pack", unit="pair") as bar:
        bar.update(8)
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(",")[0] for line in lines} >= {
        *(f"decode: {n} of 3 img" for n in (1, 2, 3)),
        "scan: 60 of 100 img",
        "pack: 8 pair",
    }
    assert all("\r" not in line and line.split(":")[0] in ("decode", "scan", "pack") for line in lines)
    assert all(line.endswith(" left") for line in lines if line.startswith(("decode", "scan")))


def test_work_of_less_than_a_minute_writes_no_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "decode", total=3, unit="img")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_disappears_when_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress(desc="scan", total=2, unit="img") as bar:
        bar.update(2)
        bar.refresh()
        shown = terminal.getvalue()
    assert "scan: 100%" in shown
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_other_processes_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(progress([1, 2], "scan", unit="img", quiet=True)) == [1, 2]
    assert terminal.getvalue() == ""
