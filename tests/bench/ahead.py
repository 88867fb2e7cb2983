"""Preparing images in threads ahead of the device: images a second, and how long the device waits for them.

    python tests/bench/ahead.py [--threads 0 1 2 4] [--images 16] [--out eval/results/bench/ahead.json]

Photos of 700x700 pixels, of which moondream reads ten crops, from JPEG bytes to the tensors that are sent. The device
is a sleep of as long as an H100 computes for such a photo, 20 ms. With 0 threads images are prepared between the steps.
The ways take turns in every round, and of the rounds the best is taken. More threads than cores cannot help: each
record has `cores` and `load`, the machine's load average before the first round.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.ahead import ahead
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.images.stored import StoredImage
from vlm_detect.machine import cpu_cores, machine_name
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor

BATCH = 2
DEVICE_S = 0.02  # an image


@dataclass(frozen=True)
class Config:
    threads: list[int] = field(default_factory=lambda: [0, 1, 2, 4], metadata={"help": "Threads to compare."})
    images: int = field(default=16, metadata={"help": "Images a way and round."})
    rounds: int = field(default=3, metadata={"help": "Rounds; the best is taken."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    load = os.getloadavg()[0]
    batches = [[photo(seed) for seed in range(BATCH)]] * (config.images // BATCH)
    bytes_sent = {normal: prepare(batches[0][:1], normal)["pixel_values"].nbytes for normal in (False, True)}
    alone: dict[int, list[float]] = {threads: [] for threads in config.threads}
    ahead_of: dict[int, list[float]] = {threads: [] for threads in config.threads}
    for _ in range(config.rounds):
        for threads in config.threads:
            alone[threads].append(seconds(batches, threads, device_s=0.0))
            ahead_of[threads].append(seconds(batches, threads, device_s=DEVICE_S))
    records: list[dict[str, Any]] = []
    for threads in config.threads:
        took = min(ahead_of[threads])
        records.append(
            {
                "bench": "ahead",
                "setting": {"crops": 10, "threads": threads, "device_ms": 1000 * DEVICE_S},
                "images_per_s": round(config.images / min(alone[threads]), 1),
                "device_idle": round(1 - config.images * DEVICE_S / took, 3),
                "megabytes_an_image": round(bytes_sent[False] / 1e6, 2),
                "megabytes_as_float32": round(bytes_sent[True] / 1e6, 2),
                "cores": cpu_cores(),
                "load": round(load, 1),
                "command": " ".join(["python tests/bench/ahead.py", *argv]),
                "commit": git_commit(),
                "device": machine_name("cpu"),
            }
        )
        print(records[-1])
    if config.out:
        write_json(config.out, records)


def photo(seed: int) -> StoredImage:
    """Noise under a gradient, as JPEG."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(0, 200, 700)[None, :, None] + rng.normal(0, 20, (700, 700, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return StoredImage(buffer.getvalue())


def prepare(images: Sequence[StoredImage], do_normalize: bool = False) -> Any:
    processor = MoondreamImageProcessor()
    return processor([image.open() for image in images], return_tensors="pt", do_normalize=do_normalize)


def seconds(batches: Sequence[Sequence[StoredImage]], threads: int, device_s: float) -> float:
    """Wall seconds to prepare all and have the device compute them."""
    started = time.perf_counter()
    for batch in ahead(prepare, batches, threads):
        time.sleep(device_s * len(batch["pixel_values"]))
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
