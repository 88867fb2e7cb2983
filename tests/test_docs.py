"""What the documentation names exists: rooms, files, configs, verbs; and the site builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_layers import ROOMS
from vlm_detect.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = "deploy|recipes|eval|data_gen|docs|tests|vlm_detect|examples"
CONFIGS = {path.stem for path in (ROOT / "vlm_detect" / "configs").rglob("*.yaml")}


def found(pattern: str) -> list[tuple[str, str]]:
    """(page, match) of the pattern's group in all pages."""
    return [
        (str(page.relative_to(ROOT)), match.group(1))
        for page in PAGES
        for match in re.finditer(pattern, page.read_text(encoding="utf-8"))
    ]


def test_the_design_lists_the_rooms_in_their_order():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("## Contracts")[0]
    rooms = [room.strip("`") for room in re.findall(r"^\| (`\w+`|root) \|", table, flags=re.MULTILINE)]
    assert rooms == list(ROOMS)


def test_every_named_file_exists():
    named = found(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]*[\w/])(?![\w*{{<-])")
    assert len(named) > 100
    missing = [f"{page}: {path}" for page, path in named if not (ROOT / path).exists() and "vX_Y" not in path]
    assert not missing, "\n".join(missing)


def test_every_named_config_exists():
    named = [(page, name) for page, name in found(r"--config ([\w./-]+)") if name != "FILE.yaml"]
    assert len(named) > 10
    missing = [f"{page}: {name}" for page, name in named if name not in CONFIGS and not (ROOT / name).is_file()]
    assert not missing, "\n".join(missing)


def test_every_named_verb_exists():
    named = found(r"(?:^|`|\s)vlm-detect ([a-z][a-z-]*)")
    assert len(named) > 20
    missing = [
        f"{page}: vlm-detect {verb}" for page, verb in named if verb not in {known.split()[0] for known in VERBS}
    ]
    assert not missing, "\n".join(missing)


def test_the_site_builds_without_a_warning(tmp_path: Path):
    if not find_spec("zensical"):
        pytest.skip("zensical is not installed (extra `docs`)")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "site"
    for page in ("index.html", "tutorials/student/index.html", "reference/infer/index.html"):
        assert (site / page).is_file()
    assert "vlm_detect.infer.detector.Detector" in (site / "reference" / "infer" / "index.html").read_text()
