"""Kernels, bytes and waits for the device of a micro-step, on the stand-in for a CUDA device.

    python -m tests.standin.device tests/bench/micro_step.py [--out eval/results/bench/micro_step.json]

The Trainer's own loop over toy pairs, nothing logged: from a batch's way to the device to its gradients, with the
optimiser's steps. The model is a moondream of two narrow layers with the official crops and prefix. Counted are
operators (on a GPU at least one kernel each), the bytes that they read and write, and what the host waits for
(`tests/standin/device.cpp`). Operators and bytes of a real model differ by its layers and widths; waits do not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import checkout  # noqa: F401

from tests.factories import tiny_vlm
from tests.standin.counting import MICRO_STEPS, micro_steps
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main

OFFICIAL: dict[str, Any] = {
    "vision_config": {"crop_size": 378, "patch_size": 14, "max_crops": 12, "overlap_margin": 4},
    "text_config": {"max_position_embeddings": 2048},
}


@dataclass(frozen=True)
class Config:
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records = []
    for cached, autocast in itertools.product((False, True), ("no", "bf16")):
        counts = micro_steps(tiny_vlm(**OFFICIAL), cached=cached, autocast=autocast)
        waits = {name: times / MICRO_STEPS for name, times in counts.waits.items()}
        tower = "cached" if cached else "live"
        record: dict[str, Any] = {
            "bench": "micro_step",
            "setting": {"tower": tower, "images": 4, "questions": 8, "autocast": autocast},
            "operations": round(sum(counts.launches.values()) / MICRO_STEPS, 1),
            "megabytes": round(sum(counts.bytes.values()) / MICRO_STEPS / 1e6, 2),
            "waits": round(sum(waits.values()), 2),
            "waits_for": waits,
            "command": " ".join(["python -m tests.standin.device tests/bench/micro_step.py", *argv]),
            "commit": git_commit(),
            "device": "stand-in for CUDA on a CPU",
        }
        print(record)
        records.append(record)
    if config.out:
        write_json(config.out, records)


if __name__ == "__main__":
    run_main(main)
