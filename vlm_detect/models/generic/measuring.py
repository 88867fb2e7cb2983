"""How a loaded model is run to find out what it can do (`probe.py`, `image_features.py`), and what counts as equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vlm_detect.errors import first_line
from vlm_detect.models.base import VLM

# Of a difference that matters. Rounding changes some 1e-6 of it in float32. In bfloat16 it is up to 0.02 in tiny
# models, and more in deep ones: the error of a sum, 0.4 %, adds up over the layers.
TOLERANCE = 0.001  # in float32
TOLERANCE_ROUNDED = 0.1  # in 16 bits, or with quantised weights


class Refused(Exception):
    """Why a model cannot be run so."""


def tolerance_of(model: Any) -> float:
    """How much of a difference that matters rounding may change."""
    is_rounded = model.dtype.itemsize < 4 or getattr(model.config, "quantization_config", None) is not None
    return TOLERANCE_ROUNDED if is_rounded else TOLERANCE


@contextmanager
def measuring(vlm: VLM, failing: str) -> Iterator[None]:
    """Without dropout, gradients and autocast. Raises Refused, which begins with `failing`, for whatever fails but
    memory."""
    if next(vlm.model.parameters()).untyped_storage().device.type == "meta":  # fake tensors have such storage too
        raise Refused("its weights have no values to measure")
    training = [module for module in vlm.model.modules() if module.training]
    vlm.model.eval()
    try:
        with torch.no_grad(), torch.autocast(vlm.device.type, enabled=False):
            yield
    except (Refused, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model that was not made for such inputs can fail on them in any way
        raise Refused(f"{failing} ({type(error).__name__}: {first_line(error)})") from error
    finally:
        for module in training:
            module.training = True
