"""Export a CNN's run, or the head of a run on its image tower, as an ONNX graph: `vlm-detect export RUN OUT --to onnx`.

    OUT/model.onnx      what onnxruntime runs: pixels in, log-odds and probabilities out
    OUT/export.json     its inputs and outputs, how an image becomes them, classes and operating point

The language model is not exported, so the verdict of a head's graph is the head's alone: neither the fusion with the
other witnesses nor the calibration of the run, which is of the fused log-odds, nor the novelty of an image is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vlm_detect.config import file_sha256, write_json
from vlm_detect.errors import UserError
from vlm_detect.infer.head import FILE as HEAD_FILE
from vlm_detect.infer.head import Head, probe_image
from vlm_detect.infer.pooled import mean_and_deviation, pooled_features, watched
from vlm_detect.models.base import VLM
from vlm_detect.models.cnn.configuration import is_cnn_run
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.onnx_graph import onnx_graph
from vlm_detect.models.export import merge, new_folder
from vlm_detect.models.onnx import OPSET, OnnxGraph, require_onnx, write_onnx
from vlm_detect.models.registry import load_vlm

MODEL, DESCRIPTION = "model.onnx", "export.json"


def export_onnx(run: str, out: Path) -> float:
    """Write the folder `out`; gives the largest difference between onnxruntime's results and ours.

    `UserError` for a run that is neither a CNN's nor has a head on its own tower, and where the two differ.
    """
    require_onnx()
    with new_folder(out):
        return _export_cnn(run, out) if is_cnn_run(run) else _export_head(run, out)


def _export_cnn(run: str, out: Path) -> float:
    detector = CnnDetector.load(run)
    config = detector.config
    facts = {
        "kind": "cnn",
        "pixels": {"colours": "RGB", "dtype": "uint8", "side": config.image_size, "fit": config.fit},
        "heads": detector.heads,
        "positive_class": detector.positive_class,
        "calibration": detector.calibration.operating_point(),
    }
    return _write(onnx_graph(detector), run, out, facts, Path(run) / "model.safetensors")


def _export_head(run: str, out: Path) -> float:
    head = Head.load(run)
    if head is None:
        raise UserError(
            f"{run}: --to onnx is for a CNN's run or a run with a head ({HEAD_FILE}); vlm-detect fit-head fits one"
        )
    if backbone := head.about.get("backbone"):
        raise UserError(
            f"{run}: its head reads {backbone}; --to onnx exports heads on a run's own tower: fit one with vlm-detect "
            "fit-head, without --backbone"
        )
    vlm = load_vlm(run, dtype=torch.float32, device="cpu")
    if isinstance(vlm.model, PeftModel):
        vlm.model = merge(vlm.model)
    head.check_tower(pooled_features(vlm, [probe_image()]))
    tower = vlm.onnx_tower()
    graph = OnnxGraph(
        HeadOnTower(vlm, tower.module, head), tower.example, ["log_odds", "p_generated"], tower.dynamic, tower.further
    )
    facts = {"kind": "head", "model": vlm.name, "positive_class": "generated", "head": {"n": head.n, **head.about}}
    found = _write(graph, run, out, facts, Path(run) / HEAD_FILE)
    vlm.processor.image_processor.save_pretrained(out)
    return found


class HeadOnTower(nn.Module):
    """A tower's inputs to the log-odds (B,) of a head on it, and their probability at even odds."""

    weights: Tensor
    intercept: Tensor

    def __init__(self, vlm: VLM, tower: nn.Module, head: Head) -> None:
        super().__init__()
        self.vlm, self.tower = vlm, tower
        weights, intercept = head.linear()
        self.register_buffer("weights", torch.from_numpy(weights))
        self.register_buffer("intercept", torch.tensor(intercept, dtype=torch.float64))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        with watched(self.vlm) as seen:
            self.tower(*inputs)
        ((read, given),) = seen
        # In double precision, as the head's own: its weights of near copies are large and cancel.
        odds = mean_and_deviation([read, given]).double() @ self.weights + self.intercept
        return odds.float(), odds.sigmoid().float()


def _write(graph: OnnxGraph, run: str, out: Path, facts: dict[str, Any], weights: Path) -> float:
    out.mkdir(parents=True, exist_ok=True)
    difference = write_onnx(graph, out / MODEL)
    described = {}
    for name, tensor in graph.example.items():
        words = graph.dynamic.get(name, {})
        shape = [words.get(place, size) for place, size in enumerate(tensor.shape)]
        described[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    source = {"run": run, "sha256": file_sha256(weights)}
    record = {**facts, "inputs": described, "outputs": list(graph.outputs), "opset": OPSET, "source": source}
    write_json(out / DESCRIPTION, {**record, "largest_difference": difference})
    return difference
