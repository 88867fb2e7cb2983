"""The import paths of version 0.1 that moved. They work until 0.3, with a `DeprecationWarning` at each use.

    from vlm_detect.bench.metrics import figures      # now vlm_detect.stats.metrics

A package that modules moved out of calls `add_aliases(__name__)`, which puts a proxy for each of them into
`sys.modules`: an import finds the proxy, which loads the new module on access to a name.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# (old package, new package): modules that kept their names.
_KEPT_NAMES = {
    ("baselines", "cnn"): "batches card evaluation explain figures heatmap options pixels program tasks trainer",
    ("baselines", "benchmark"): "view",
    ("baselines", "models.cnn"): "architectures backbones configuration detector model networks views",
    ("bench", "benchmark"): "build classifier compare compare_report dataset_items demo_report explanations "
    "importers items perturb report respondents results robustness run score summary",
    ("bench", "infer"): "endpoint",
    ("bench", "pages"): "page",
    ("bench", "stats"): "intervals metrics",
    ("chat", "apps"): "api errors guard payloads scan server service session settings tasks terminal terminal_image "
    "worker",
    ("data", "generate"): "build caption_step captions card cost dataset_files edit_step edits hub import_step "
    "pair_rows pair_sets prompts receipts render_step renderer usable",
    ("data", "images"): "decode encode provenance",
    ("data", "jobs"): "executors shards",
    ("models.nano", "nano"): "autoencoder captioner captions cards config figures judge photos prompt_encoders "
    "renderer tinyllava tokenizer training weights",
    ("train", "stats"): "calibration",
}
_NEW_NAMES = {
    "bench.floors": "benchmark.text_baselines",
    "bench.model_floors": "benchmark.model_baselines",
    "bench.parse": "questions.read",
    "bench.progress": "progress",
    "bench.prompts": "questions.prompts",
    "data.bare": "images.strip_metadata",
    "data.extras": "extras",
    "data.questions": "questions.ask",
    "train.images": "images.stored",
    "train.machine": "machine",
    "train.packing": "models.rows",
}
# Modules with names that the module's new place lacks.
_ELSEWHERE = {
    "baselines.pixels": "models.cnn.squares",
    "baselines.tasks": "models.cnn.verdicts",
    "bench.build": "records questions.kinds.multiple_choice questions.kinds.which_of_two questions.kinds.attribution",
    "bench.prompts": "questions.kind",
    "bench.report": "benchmark.report_parts benchmark.report_sections",
    "data.decode": "images.bounds",
    "data.questions": "records places questions.sample questions.kinds.explain questions.kinds.operation "
    "questions.kinds.place questions.kinds.attribution questions.kinds.multiple_choice",
    "data.edits": "images.edits",
    "data.edit_step": "generate.choices generate.options",
    "data.hub": "generate.options",
    "data.render_step": "generate.choices generate.options",
    "data.renderer": "generate.options",
    "data.shards": "jobs.executors",
}
# Names that changed with the move.
_RENAMED = {
    "draw_edit": "random_edit",
    "draw_questions": "sample_questions",
    "floors_by_kind": "baselines_by_kind",
    "model_floors": "model_baselines",
    "text_floors": "text_baselines",
}


def moves() -> Iterator[tuple[str, str]]:
    """(old path, new path) of every module that moved, below `vlm_detect.`"""
    for (old, new), names in _KEPT_NAMES.items():
        yield from ((f"{old}.{name}", f"{new}.{name}") for name in names.split())
    yield from _NEW_NAMES.items()


class _MovedModule(ModuleType):
    """A proxy for a module at its old path."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old, f"Moved to {new}.")
        self._new = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # code that walks through sys.modules
            raise AttributeError(name)
        elsewhere = _ELSEWHERE.get(self.__name__.removeprefix("vlm_detect."), "").split()
        new_name = _RENAMED.get(name, name)
        for place in (self._new, *(f"vlm_detect.{name}" for name in elsewhere)):
            if hasattr(module := importlib.import_module(place), new_name):
                message = f"{self.__name__}.{name} is {place}.{new_name} now; the old path ends with version 0.3"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                return getattr(module, new_name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}; it is {self._new} now")


def add_aliases(package: str) -> None:
    """Let `import package.module` find the modules that moved out of `package` (a name with `vlm_detect.`)."""
    for old, new in moves():
        parent, _, name = f"vlm_detect.{old}".rpartition(".")
        if parent == package:
            module = _MovedModule(f"{parent}.{name}", f"vlm_detect.{new}")
            sys.modules[module.__name__] = module
            setattr(sys.modules[package], name, module)
