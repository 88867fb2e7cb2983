"""The wheel has what the package reads, and its verbs work outside a clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from zipfile import ZipFile

import pytest

from vlm_detect.config import REPOSITORY

PACKAGE = REPOSITORY / "vlm_detect"
# What setuptools reads to build it.
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


def data_files() -> set[str]:
    """The package's files that are no modules, by their paths in the wheel."""
    listed = subprocess.run(["git", "ls-files", "vlm_detect"], cwd=REPOSITORY, capture_output=True, text=True)
    return {path for path in listed.stdout.split() if not path.endswith(".py")}


def test_every_data_file_is_named_as_package_data():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    globs = settings["tool"]["setuptools"]["package-data"]["vlm_detect"]
    covered = {path.relative_to(REPOSITORY).as_posix() for glob in globs for path in PACKAGE.glob(glob)}
    missing = data_files() - covered
    assert not missing


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not find_spec("setuptools") or int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("building needs setuptools 77 or newer in this environment")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, source / "vlm_detect", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(list(map(str, command)), check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_every_file(wheel: Path):
    assert data_files() <= set(ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_verbs_of_a_wheel_work_outside_a_clone(wheel: Path, tmp_path: Path):
    """In an environment that has this one's libraries, and of vlm-detect the wheel alone."""
    venv.create(tmp_path / "venv", symlinks=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with ZipFile(wheel) as opened:
        opened.extractall(packages)
    (packages / "libraries.pth").write_text(get_path("purelib"))  # a .pth in there, as of an editable install, is inert
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object) -> str:
        command = [str(tmp_path / "venv" / "bin" / "python"), *map(str, arguments)]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(packages) in run("-c", "import vlm_detect; print(vlm_detect.__file__)")
    assert run("-m", "vlm_detect", "configs", "moondream_lora").startswith("# moondream2 in bf16")
    assert "--max_grad_norm" in run("-m", "vlm_detect.train.moondream", "--help")
    assert "moondream_qlora_8gb.yaml: 3.8 GB" in run("-m", "vlm_detect", "doctor")
    run("-m", "vlm_detect.data.demo_photos", "photos")
    nano = ("--captioner", "nano", "--generator", "nano", "--limit", 8)
    run("-m", "vlm_detect", "make-pairs", "--images", "photos", "--out", "pairs", *nano)
    scored = ("--model", "nano", "--benchmark", "pairs", "--split", "train", "--limit", 1, "--out", "scores")
    run("-m", "vlm_detect", "benchmark", *scored)
    assert (work / "scores" / "report.html").is_file()


def test_the_package_uses_no_file_outside_of_it():
    """The clone is known for the commit and for the commands that records have, both in config.py."""
    knowing = {path.name for path in PACKAGE.rglob("*.py") if "REPOSITORY" in path.read_text(encoding="utf-8")}
    assert knowing == {"config.py"}
    folders = ('"recipes/', '"data_gen/', '"eval/')
    naming = [path for path in PACKAGE.rglob("*.py") if any(one in path.read_text(encoding="utf-8") for one in folders)]
    assert not naming
