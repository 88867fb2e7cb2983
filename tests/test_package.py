"""What `import vlm_detect` settles for a program before torch is loaded."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from vlm_detect.config import REPOSITORY

PROGRAMS = sorted(path for folder in ("recipes", "eval", "data_gen") for path in (REPOSITORY / folder).glob("*.py"))
LOAD_TORCH = {"torch", "transformers", "accelerate", "diffusers", "peft", "datasets"}


def imports(program):
    """The top packages that a program imports, in its order."""
    for node in ast.parse(program.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_programs_import_the_package_before_torch(program):
    assert next(name for name in imports(program) if name in LOAD_TORCH | {"vlm_detect"}) == "vlm_detect"


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_spin_shortly_unless_the_user_says_otherwise(given, spins):
    said = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in said} | given
    code = "import sys, vlm_detect, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == spins
