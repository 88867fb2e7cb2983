"""What the GPU programs share: the model at real or small size, times, peak memory, the matmul ceiling, records.

Full-size models have random weights: they cost what the real ones cost. `--size small` runs the same code in seconds on
a CPU, so that the programs stay whole; its figures mean nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parents[2])]

from tests.factories import tiny_config, tiny_tokenizer  # noqa: E402
from vlm_detect.config import git_commit, write_json  # noqa: E402
from vlm_detect.errors import UserError  # noqa: E402
from vlm_detect.models.moondream import (  # noqa: E402
    MoondreamConfig,
    MoondreamForConditionalGeneration,
    MoondreamProcessor,
)
from vlm_detect.models.moondream.family import MoondreamVLM  # noqa: E402

# Crops of an image to its tiling. One crop: the image fits it, and is read once. (No picture makes five crops by the
# released sizes; five is a measuring point of the tower's cost.)
TILINGS = {1: (1, 1), 5: (2, 2), 10: (3, 3)}


@dataclass(frozen=True)
class Machine:
    """Where and how large."""

    device: str = field(default="cuda", metadata={"help": "cuda or cpu."})
    size: str = field(default="full", metadata={"help": "full: moondream2's sizes; small: the same code in seconds."})
    repeats: int = field(default=5, metadata={"help": "Timed rounds; medians are reported."})
    out: str | None = field(default=None, metadata={"help": "Write the records to this JSON file."})

    def check(self) -> None:
        if self.size not in ("full", "small"):
            raise UserError(f"--size {self.size}: choose full or small")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no CUDA device; --device cpu --size small runs the code alone")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"


def moondream_config(machine: Machine) -> MoondreamConfig:
    return MoondreamConfig() if machine.size == "full" else tiny_config(vision_config={"max_crops": 9})


def random_moondream(machine: Machine, attention: Any = "sdpa") -> MoondreamVLM:
    """A moondream with random weights, made on the device. Its tokenizer has a token a byte."""
    config = moondream_config(machine)
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = MoondreamForConditionalGeneration._from_config(
            config, dtype=machine.dtype, attn_implementation=attention
        )
    return MoondreamVLM(model.eval(), MoondreamProcessor(config, tokenizer=tiny_tokenizer()), "random")


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def prepared(vlm: MoondreamVLM, crops: int, images: int) -> dict[str, torch.Tensor]:
    """Tensors of noise in the form of `VLM.prepare`, each image of so many crops."""
    tiling, side = TILINGS[crops], vlm.processor.config.vision_config.crop_size
    count = 1 + tiling[0] * tiling[1]
    pixels = torch.randn(images, count, 3, side, side, device=vlm.device, dtype=vlm.model.dtype)
    return {"pixel_values": pixels, "tilings": torch.tensor([tiling] * images)}


def synchronise(machine: Machine) -> None:
    if machine.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], machine: Machine, warm_up: int = 2) -> float:
    """Median wall seconds of `work`, the device's queue drained before and after."""
    for _ in range(warm_up if machine.size == "full" else 1):
        work()
    times = []
    for _ in range(machine.repeats):
        synchronise(machine)
        started = time.perf_counter()
        work()
        synchronise(machine)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def reset_peak(machine: Machine) -> None:
    if machine.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(machine: Machine) -> float | None:
    """Peak allocated memory since `reset_peak`, in 10^9 bytes; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if machine.device == "cuda" else None


def matmul_ceiling(machine: Machine) -> float:
    """FLOP/s of a large square matmul in the models' dtype: what a step is held against."""
    side = 8192 if machine.size == "full" else 512
    a, b = (torch.randn(side, side, device=machine.device, dtype=machine.dtype) for _ in range(2))

    def several() -> None:
        for _ in range(10):
            a @ b

    return 10 * 2 * side**3 / seconds_of(several, machine)


def record(machine: Machine, program: str, argv: list[str], **figures: Any) -> dict[str, Any]:
    return {
        **figures,
        "size": machine.size,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "command": " ".join([f"python tests/gpu/{program}.py", *argv]),
        "commit": git_commit(),
        "device": machine.name,
        "torch": torch.__version__,
    }


def write(machine: Machine, records: list[dict[str, Any]]) -> None:
    if machine.out:
        write_json(machine.out, records)
