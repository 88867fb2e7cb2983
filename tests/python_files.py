"""The Python files of the repository, parsed: what the tests of conventions read."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("vlm_detect", "recipes", "eval", "data_gen", "examples", "tests")


@cache
def trees() -> dict[Path, ast.Module]:
    """Every file by its path below the root."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in files}
