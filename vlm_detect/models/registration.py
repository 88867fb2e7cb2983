"""Our models in transformers' Auto classes, as soon as those exist.

    import vlm_detect
    from transformers import AutoModelForImageTextToText      # in either order
    AutoModelForImageTextToText.from_pretrained("a/merged/folder")

Importing the models takes seconds and `import vlm_detect` none, so registration waits until transformers loads the
module that the Auto classes are in.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_AUTO_CLASSES = "transformers.models.auto.modeling_auto"
_LAYERS = "transformers.modeling_layers"  # imports the Auto classes, and is imported by our models
_MODELS = ("vlm_detect.models.moondream", "vlm_detect.models.tinyllava")  # importing one registers it


def register_when_loaded() -> None:
    """Register now where transformers' Auto classes are loaded, else when they are."""
    if _AUTO_CLASSES in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WaitForAutoClasses())


def _register() -> None:
    for name in _MODELS:
        importlib.import_module(name)


class _WaitForAutoClasses(MetaPathFinder):
    """Finds nothing itself: leaves after it has asked the other finders for the Auto classes' module.

    Where the layers' module comes first, which then loads the Auto classes halfway through, registering waits for it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in (_AUTO_CLASSES, _LAYERS):
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
