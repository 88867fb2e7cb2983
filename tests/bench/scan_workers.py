"""A scan in shards by one, two and four workers: rows a second, and the ratio to one worker.

    python tests/bench/scan_workers.py [--workers 1 2 4] [--images 4096] [--out eval/results/bench/scan_workers.json]

The command of a user, `vlm-detect scan ... --out FOLDER --workers N`, on photos of 256x256 pixels in a parquet file, by
the nano model on a CPU with one thread a worker. Its seconds contain all of the start: listing, processes, and the
model, which each worker loads. The ways take turns in every round, and of the rounds the best is taken. More workers
than cores cannot help: each record has `cores` and `load`, the machine's load average before the first round.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import cpu_cores, machine_name

SIDE = 256
KINDS = 64  # different photos; each row is judged, whether its photo was seen before or not


@dataclass(frozen=True)
class Config:
    workers: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Numbers of workers to compare."})
    images: int = field(default=4096, metadata={"help": "Rows of a scan."})
    shard_size: int = field(default=128, metadata={"help": "Rows of a shard."})
    model: str = field(default="nano", metadata={"help": "The model."})
    rounds: int = field(default=3, metadata={"help": "Rounds; the best is taken."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    load = os.getloadavg()[0]
    took: dict[int, list[float]] = {workers: [] for workers in config.workers}
    with tempfile.TemporaryDirectory() as folder:
        table = save_photos(Path(folder) / "photos.parquet", config.images)
        for round_ in range(config.rounds):
            for workers in config.workers:
                took[workers].append(seconds(config, table, Path(folder) / f"{round_}_{workers}", workers))
    best = {workers: min(times) for workers, times in took.items()}
    first = config.workers[0]
    records: list[dict[str, Any]] = []
    for workers in config.workers:
        records.append(
            {
                "bench": "scan_workers",
                "setting": {"workers": workers, "images": config.images, "model": config.model, "side": SIDE},
                "ratio": round(best[first] / best[workers], 2),
                "ceiling": min(workers, cpu_cores()) / min(first, cpu_cores()),
                "against": f"{first} worker{'s' * (first > 1)}",
                "rows_per_s": round(config.images / best[workers], 1),
                "cores": cpu_cores(),
                "load": round(load, 1),
                "command": " ".join(["python tests/bench/scan_workers.py", *argv]),
                "commit": git_commit(),
                "device": machine_name("cpu"),
            }
        )
        print(records[-1])
    if config.out:
        write_json(config.out, records)


def save_photos(path: Path, images: int) -> Path:
    """Noise under a gradient, as JPEG."""
    photos = []
    for seed in range(KINDS):
        rng = np.random.default_rng(seed)
        pixels = np.linspace(0, 200, SIDE)[None, :, None] + rng.normal(0, 20, (SIDE, SIDE, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        photos.append({"bytes": buffer.getvalue(), "path": None})
    rows = [photos[row % KINDS] for row in range(images)]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=1024)
    return path


def seconds(config: Config, table: Path, out: Path, workers: int) -> float:
    """Wall seconds of the command."""
    command = [sys.executable, "-m", "vlm_detect", "scan", str(table), "--model", config.model, "--out", f"{out}/"]
    command += ["--workers", str(workers), "--shard_size", str(config.shard_size)]
    started = time.perf_counter()
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip()}")
    return took


if __name__ == "__main__":
    run_main(main)
