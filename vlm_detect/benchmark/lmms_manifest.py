"""What the entry point `lmms_eval.models` gives lmms-eval: the name of our model's class, which is not imported yet."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of `--model vlm_detect`; lmms-eval calls this, and is imported for nothing else."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vlm_detect",
        simple_class_path="vlm_detect.benchmark.lmms_model.VlmDetect",
        aliases=("moondream", "moondream2"),
    )
