"""A package outside of this tree that brings plugins: written to a folder, found by its entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vlm_detect import plugins
from vlm_detect.benchmark.importers import VQA_IMPORTERS
from vlm_detect.benchmark.report import SECTIONS
from vlm_detect.data.image_sets import IMPORTERS
from vlm_detect.generate.generator import GENERATORS
from vlm_detect.images.edits import EDITS
from vlm_detect.measures.registry import MEASURES
from vlm_detect.models.base import FAMILIES
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.questions.kind import KINDS
from vlm_detect.stats.metrics import METRICS


class Outside:
    """Packages in a folder on `sys.path`, as an installer leaves them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def install(self, name: str, files: Mapping[str, str], points: Mapping[str, str], version: str = "1.0") -> None:
        """`files` {path: content}, `points` {KIND.NAME: module}."""
        for file, content in files.items():
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{point} = {module}\n" for point, module in points.items())
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{lines}")
        self._monkeypatch.setattr(sys, "path", [*sys.path, str(self.folder)])  # another path: looked through again


REGISTRIES: tuple[plugins.Registry, ...] = (
    *(FAMILIES, GENERATORS, ARCHITECTURES, EDITS, IMPORTERS, VQA_IMPORTERS),
    *(KINDS, METRICS, MEASURES, SECTIONS),
)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Empty at first. What it brought is neither registered nor imported any more behind the test."""
    modules = set(sys.modules)
    folder = tmp_path / "outside"
    folder.mkdir()
    yield Outside(folder, monkeypatch)
    for registry in REGISTRIES:
        for name in set(registry._things) - set(registry.own):
            del registry._things[name], registry._makers[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
