"""LoRA steps of the bench geometry, timed side by side and their FLOPs counted: what the training benches share.

Times are CPU time of the one thread, the ways taking turns in every round, and of the rounds the least: other work on
the machine, which shares the caches, can only add to it. FLOPs are those that torch counts in the very steps, attention
and LoRA with both of their passes included, so that a ceiling is that of what is timed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from flops import bench_config, flop_ratio
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests.factories import tiny_tokenizer
from vlm_detect.config import git_commit
from vlm_detect.images.stored import StoredImage
from vlm_detect.machine import keep_freed_memory, machine_name
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions

# Width and height that give so many crops where allowed. Two are the whole and its one tile, the same pixels, which the
# tower reads once.
SIZES = {2: (378, 378), 5: (630, 630), 10: (700, 700)}  # width, height that give so many crops where allowed
QUESTION_TOKENS = 50  # for a question with its answer and template, in a real tokenizer


def make_vlm() -> MoondreamVLM:
    """The bench geometry with a LoRA on the decoder; says how near its FLOP ratio is to the real one."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the recipes do on a CPU
    torch.manual_seed(0)
    config = bench_config()
    model = MoondreamForConditionalGeneration(config)
    vlm = MoondreamVLM(model, MoondreamProcessor(config, tokenizer=tiny_tokenizer()), "bench")
    add_lora(vlm, LoraOptions())
    print(f"tower (10 crops) to LoRA step: {flop_ratio(config):.2f}, the real model's is 1.68")
    return vlm


def photo(vlm: MoondreamVLM, crops: int, seed: int = 0) -> StoredImage:
    """Noise under a gradient, as JPEG; the processor makes `crops` crops of it."""
    # The official limit of 12 tiles knows no image of 5 crops.
    vlm.processor.image_processor.max_crops = min(12, crops - 1)
    width, height = SIZES[crops]
    rng = np.random.default_rng(seed)
    pixels = np.linspace(0, 200, width)[None, :, None] + rng.normal(0, 20, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    image = StoredImage(buffer.getvalue())
    assert vlm.prepare([image.open()])["pixel_values"].shape[1] == crops
    return image


def questions(vlm: MoondreamVLM, count: int) -> list[Question]:
    """So many questions of `QUESTION_TOKENS` tokens each, answer included."""
    found = []
    for i in range(count):
        rest = QUESTION_TOKENS - len(vlm.question_ids("")) - len(vlm.answer_ids("Yes."))
        found.append(Question("yes_no", f"{i}".ljust(rest, "?"), "Yes."))
    return found


def step(vlm: MoondreamVLM, collator: Collator, units: list[list[Example]], optimizer: torch.optim.Optimizer) -> float:
    """One whole step from stored bytes to changed weights; gives the loss."""
    loss = answer_loss(vlm, vlm.model, collator(units))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def adamw(vlm: MoondreamVLM) -> torch.optim.Optimizer:
    """With a rate of nothing, so that every step of the bench is the same."""
    return torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=0.0)


def timed(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each way, which has been called before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    least = {name: min(times) for name, times in seconds.items()}
    print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in least.items()))
    return least


def flops(way: Callable[[], Any]) -> float:
    """Of one call, as torch counts them; a multiply-add counts as two."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {
        attention: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        way()
    return float(counter.get_total_flops())


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **options: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def record(bench: str, setting: Mapping[str, Any], against: str, argv: list[str], **figures: float) -> dict[str, Any]:
    """One line of `eval/results/bench/*.json`."""
    return {
        "bench": bench,
        "setting": {**setting, "threads": 1},
        **{name: round(value, 3) for name, value in figures.items()},
        "against": against,
        "command": " ".join([f"python tests/bench/{bench}.py", *argv]),
        "commit": git_commit(),
        "device": machine_name("cpu"),
    }
