"""TinyLLaVA as a `VLM`: a LLaVA with a loader and a layout of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vlm_detect.models.base import family
from vlm_detect.models.generic.llava import LlavaVLM
from vlm_detect.models.tinyllava import MODEL_TYPE, load_tinyllava


@family(MODEL_TYPE)
class TinyLlavaVLM(LlavaVLM):
    @classmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[PreTrainedModel, Any]:
        return load_tinyllava(path_or_id, revision=revision, dtype=dtype, **options)

    @classmethod
    def trained_in_float16(cls, stored: Mapping[str, Any]) -> bool:
        """As all training scripts of TinyLLaVA_Factory do."""
        return True

    @property
    def overflows_in_float16(self) -> bool:
        return False

    def save_official(self, out: Path) -> None:
        self.model.save_official(out, self.processor.tokenizer)
        if "lora" in str(out.resolve()):
            message = (
                "TinyLLaVA_Factory takes a path with 'lora' in it for that of a LoRA, and fails: move the folder first"
            )
            print(f"warning: {out}: {message}", file=sys.stderr)
