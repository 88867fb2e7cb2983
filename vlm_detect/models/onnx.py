"""Write a network as an ONNX graph, and compare it with the network in onnxruntime before anybody relies on it.

    graph = OnnxGraph(module, example={"pixels": pixels}, outputs=["p_fake"], dynamic={"pixels": {0: "images"}})
    difference = write_onnx(graph, folder / "model.onnx")     # the largest difference of an output

Needs the extra `onnx`. Weights stand in the file itself, or next to it where one file of protobuf cannot hold them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vlm_detect.errors import UserError, first_line
from vlm_detect.extras import require

OPSET = 20  # of 2023: every onnxruntime since 1.17 reads it
TOLERANCE = 1e-4  # between a probability of ours and of onnxruntime
_IN_ONE_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB


@dataclass(frozen=True)
class OnnxGraph:
    """A module of named tensors to a tuple of tensors, and what has to be known to trace it.

    `dynamic` names the dimensions of inputs that may have any size. `further` are other inputs to compare on: sizes
    that the example does not have. `log_odds` is an output in nats, every other one holds probabilities.
    """

    module: nn.Module
    example: dict[str, Tensor]
    outputs: Sequence[str]
    dynamic: dict[str, dict[int, str]]
    further: Sequence[dict[str, Tensor]] = field(default_factory=list)


class OnnxTower(NamedTuple):
    """A run's image tower for a graph: a module that calls the family's connector once; the rest as in `OnnxGraph`."""

    module: nn.Module
    example: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    further: Sequence[dict[str, Tensor]]


def require_onnx() -> None:
    require("onnx", "onnx", "onnxscript", "onnxruntime", wanted_by="--to onnx")


def write_onnx(graph: OnnxGraph, path: Path) -> float:
    """Write `path` in float32, compare it in onnxruntime, and return the largest difference.

    `UserError` where the network cannot be traced, or differs by more than `TOLERANCE`. Log-odds are compared as well,
    relative to their size: where both probabilities are 1, they alone show a difference.
    """
    require_onnx()
    module = graph.module.eval()
    n_bytes = sum(one.nbytes for one in module.parameters())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                _ByPosition(module),
                tuple(graph.example.values()),
                path,
                input_names=list(graph.example),
                output_names=list(graph.outputs),
                dynamic_shapes=(tuple(graph.dynamic.get(name) for name in graph.example),),
                opset_version=OPSET,
                external_data=n_bytes > _IN_ONE_FILE,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"--to onnx: this network has no ONNX graph ({reason})") from error
    difference = _difference(graph, path)
    if not difference <= TOLERANCE:
        raise UserError(
            f"--to onnx: onnxruntime's results differ by {difference:.1e}, above {TOLERANCE:g}: not exported; use the "
            "run as it is, by --model"
        )
    return difference


class _ByPosition(nn.Module):
    """The exporter describes dynamic dimensions after a module's signature: this one is the same for all."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.module(*inputs)


def _difference(graph: OnnxGraph, path: Path) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings are about initializers that the exporter left unused
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in (graph.example, *graph.further):
        with torch.no_grad():
            ours = graph.module(*inputs.values())
        theirs: Any = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        for name, own, other in zip(graph.outputs, ours, theirs, strict=True):
            size = np.maximum(np.abs(own.numpy()), 1) if name == "log_odds" else 1
            largest = max(largest, float((np.abs(own.numpy() - other) / size).max()))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress on stdout and its notes on how it traces."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
