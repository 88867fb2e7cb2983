"""Runs a program in this process, from its first line to its exit status: importing torch again takes seconds."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import pytest

from vlm_detect.cli import main
from vlm_detect.config import REPOSITORY


def run_here(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`script` (such as eval/compare.py) run with `arguments`; what came of it, as subprocess gives it."""
    argv = [str(REPOSITORY / script), *map(str, arguments)]
    return _run(argv, lambda: runpy.run_path(argv[0], run_name="__main__"))


def run_verb(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`vlm-detect` run with `arguments`."""
    return _run(["vlm-detect", *map(str, arguments)], main, stdin)


def _run(argv: list[str], program: Callable[[], object], stdin: str = "") -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        program()
    # Whether a program loads libraries depends on the tests before it; tests/test_cli.py is about that line.
    said = re.sub(r"\A.*: loading libraries \.\.\.\n", "", err.getvalue())
    return subprocess.CompletedProcess(argv, int(ended.value.code or 0), out.getvalue(), said)
