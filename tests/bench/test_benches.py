"""Benches run from a clean install: what they import is found without PYTHONPATH."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("checkout", "test_benches"))


def imported_by(name: str) -> list[str]:
    """Modules that a program imports at its top, in order."""
    body = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_bench_that_needs_the_tests_finds_them(name: str) -> None:
    if any(module.split(".")[0] == "tests" for module in imported_by(name)):
        assert "checkout" in imported_by(name)


def test_a_bench_in_another_folder_finds_this_checkout(tmp_path: Path) -> None:
    """Its imports alone: those of a whole bench take ten seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    bench = f"import sys; sys.path[0] = {str(HERE)!r}; import checkout, tests, vlm_detect; print(vlm_detect.__file__)"
    done = subprocess.run([sys.executable, "-c", bench], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == HERE.parents[1] / "vlm_detect"
