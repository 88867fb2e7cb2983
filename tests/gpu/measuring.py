"""What the GPU programs share: the model at real or small size, times, peak memory, the matmul ceiling, records.

Full-size models have random weights: they cost what the real ones cost. `--size small` runs the same code in seconds on
a CPU, so that the programs stay whole; its figures mean nothing.
"""

from __future__ import annotations

import operator
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText, AutoTokenizer, PhiConfig, SiglipVisionConfig

sys.path[:0] = [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parents[2])]

from tests.factories import tiny_config, tiny_tokenizer  # noqa: E402
from vlm_detect.config import git_commit, write_json  # noqa: E402
from vlm_detect.errors import UserError  # noqa: E402
from vlm_detect.models.base import VLM  # noqa: E402
from vlm_detect.models.generic import LlavaVLM  # noqa: E402
from vlm_detect.models.moondream import (  # noqa: E402
    MoondreamConfig,
    MoondreamProcessor,
)
from vlm_detect.models.moondream.family import MoondreamVLM  # noqa: E402
from vlm_detect.models.nano import nano_path  # noqa: E402
from vlm_detect.models.tinyllava import TinyLlavaConfig  # noqa: E402
from vlm_detect.models.tinyllava.processing import make_processor  # noqa: E402

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
        model = AutoModelForImageTextToText.from_config(config, dtype=machine.dtype, attn_implementation=attention)
    return MoondreamVLM(model.eval(), MoondreamProcessor(config, tokenizer=tiny_tokenizer()), "random")


def tinyllava_config(machine: Machine) -> TinyLlavaConfig:
    """TinyLLaVA-Phi-2-SigLIP-3.1B's sizes, or those of the nano one."""
    if machine.size == "small":
        return TinyLlavaConfig.from_pretrained(nano_path("tinyllava"))
    text = PhiConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
        max_position_embeddings=3072,
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    return TinyLlavaConfig(vision_config=vision, text_config=text, image_seq_length=728)


def random_tinyllava(machine: Machine) -> LlavaVLM:
    """A TinyLLaVA with random weights, made on the device. Its tokenizer is the nano one's."""
    config = tinyllava_config(machine)
    processor = make_processor(config, AutoTokenizer.from_pretrained(nano_path("tinyllava")))
    config.image_token_index = processor.image_token_id
    torch.manual_seed(0)
    with torch.device(machine.device):
        model = AutoModelForImageTextToText.from_config(config, dtype=machine.dtype, attn_implementation="sdpa")
    return LlavaVLM(model.eval(), processor, "random")


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def prepared(vlm: VLM, crops: int, images: int) -> dict[str, torch.Tensor]:
    """Tensors of noise in the form of `VLM.prepare`, each image of so many crops; TinyLLaVA knows one."""
    if vlm.typical_crops == 1:
        side = vlm.model.config.vision_config.image_size
        return {"pixel_values": torch.randn(images, 3, side, side, device=vlm.device, dtype=vlm.model.dtype)}
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


def hottest(work: Callable[[], Any], machine: Machine, count: int = 10) -> list[dict[str, Any]]:
    """The kernels (on a CPU the operators) that took the most time in one call of `work`, with their share of it."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if machine.device == "cuda" else [])]
    with profile(activities=kinds) as profiled:
        work()
        synchronise(machine)
    if machine.device == "cuda":  # an operator's entry repeats the time of the kernels that it launched
        time_of = operator.attrgetter("self_device_time_total")
        found = [e for e in profiled.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    else:
        time_of, found = operator.attrgetter("self_cpu_time_total"), list(profiled.key_averages())
    events = sorted(found, key=time_of, reverse=True)
    total = sum(map(time_of, events))
    return [{"name": e.key[:100], "share": round(time_of(e) / total, 4), "calls": e.count} for e in events[:count]]


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


class Parts:
    """The parts of a program; a failed part does not end the others: `with parts.part(name)`."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        try:
            yield
        # Any error, such as out of memory: it is shown, reported at the end, and the next part runs.
        except Exception:
            traceback.print_exc()
            self.failed.append(name)

    def check(self) -> None:
        """`UserError` that names the parts that failed."""
        if self.failed:
            raise UserError(f"failed, see above: {', '.join(self.failed)}")


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
