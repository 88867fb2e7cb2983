"""A bar on a terminal, lines in a log, nothing where it is quiet or soon done."""

from __future__ import annotations

import gc
import io
import queue
import sys
import threading
import time

import pytest

from vlm_detect import progress as module
from vlm_detect.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[str]:
    """The lines written in a log, one every millisecond."""
    written = queue.Queue[str]()

    def write(_: object, text: str) -> None:
        if words := text.split():
            written.put(" ".join(words))

    monkeypatch.setattr(module, "EVERY_S", 0.001)
    monkeypatch.setattr(module._Lines, "write", write)
    return written


def wait_for(lines: queue.Queue[str], beginning: str) -> str:
    while not (line := lines.get(timeout=60)).startswith(beginning):
        pass
    return line


def test_a_log_gets_lines_while_an_item_takes_long(lines: queue.Queue[str]) -> None:
    for item in progress([5, 6, 7], "decode", unit="img"):
        for _ in range(3):  # without an update in between
            assert wait_for(lines, f"decode: {item - 5} of 3 img, ").endswith(" left")
    assert wait_for(lines, "decode: 3 of 3 img, ")


def test_a_log_gets_counts_that_begin_in_the_middle_or_have_no_total(lines: queue.Queue[str]) -> None:
    with progress(desc="scan", total=100, initial=40, unit="img") as bar:
        bar.update(20)
        assert wait_for(lines, "scan: 60 of 100 img, ").endswith(" left")
    with progress(desc="pack", unit="pair") as bar:
        bar.update(8)
        wait_for(lines, "pack: 8 pair, ")


def test_lines_end_with_a_bar_that_was_never_closed(lines: queue.Queue[str]) -> None:
    before = set(threading.enumerate())
    bar = progress(desc="pack", unit="pair")
    wait_for(lines, "pack: ")
    (thread,) = {thread for thread in threading.enumerate() if thread.name == "progress"} - before
    del bar
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_log_lines_are_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    with progress(desc="scan", total=2, unit="img") as bar:
        bar.update(2)
        while not bar._written:
            time.sleep(0.001)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert all(line.startswith("scan: ") and line.endswith(" left") for line in said.splitlines())
    assert said.splitlines()[-1].startswith("scan: 2 of 2 img")


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
