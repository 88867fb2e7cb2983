"""Text of others steers no terminal and runs in no spreadsheet, and comes back from a CSV file as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.images.test_decode import saved
from vlm_detect.printable import as_cell, from_cell, printable


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''@x"])
def test_a_formula_is_text_and_comes_back(text: str) -> None:
    cell = as_cell(text)
    assert str(cell).startswith("'")
    assert from_cell(str(cell)) == text


@pytest.mark.parametrize("value", ["a.png", "'quoted'.png", "x=1", "", 0.5, -3, None, True])
def test_other_cells_are_unchanged(value: object) -> None:
    assert as_cell(value) == value
    assert not isinstance(value, str) or from_cell(value) == value


def test_unprintable_characters_are_replaced() -> None:
    assert printable("a\x1b[31mb\u202ec\x07\n") == "a\ufffd[31mb\ufffdc\ufffd\ufffd"
    assert printable("é 猫 = ok") == "é 猫 = ok"


def test_error_messages_are_printable() -> None:
    code = (
        "from vlm_detect.errors import UserError, run_main\n"
        "def main(argv): raise UserError('\\x1b]0;title\\x07bad: no such file')\nrun_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: \ufffd]0;title\ufffdbad: no such file\n")


def test_warnings_of_pillow_are_suppressed() -> None:
    """It logs what it thinks of a TIFF, which a program without logging would show on stderr."""
    code = (
        "import sys\nfrom vlm_detect.errors import run_main\ndef main(argv):\n"
        "    from vlm_detect.images.provenance import provenance\n"
        "    print(provenance(sys.stdin.buffer.read()))\nrun_main(main)"
    )
    from PIL import Image

    data = saved(Image.new("RGB", (4, 4)), "TIFF")
    place = data.index(b"\x15\x01\x03\x00")  # SamplesPerPixel, a short
    data = data[: place + 8] + b"\xff\xff" + data[place + 10 :]
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
