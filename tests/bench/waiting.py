"""Training on every core of a CPU while other work runs: threads that spin briefly against OpenMP's default.

    python tests/bench/waiting.py [--steps 30] [--out eval/results/bench/waiting.json]

The same LoRA steps of moondream-nano by `recipes/moondream_lora.py`, with as many threads as cores, with none and with
one other busy process on the machine. By default a thread that waits spins 300,000 times before it sleeps. The ways
take turns; the medians of the wall seconds that training took are compared. Worth running only on a machine that is
otherwise idle.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import checkout  # noqa: F401

from tests.train.toys import save_toy_pairs
from vlm_detect.config import REPOSITORY, git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.machine import machine_name

WAYS = {"ours": {"GOMP_SPINCOUNT": "1000"}, "plain": {"GOMP_SPINCOUNT": "300000"}}


@dataclass(frozen=True)
class Config:
    steps: int = field(default=30, metadata={"help": "Training steps of a run."})
    repeats: int = field(default=3, metadata={"help": "Runs of each way; the medians are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def training_seconds(pairs: Path, out: Path, steps: int, way: dict[str, str]) -> float:
    """Wall seconds of the steps alone: neither imports nor loading nor validation."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | way
    command = [
        sys.executable,
        str(REPOSITORY / "recipes" / "moondream_lora.py"),
        "--model",
        "nano",
        "--data",
        str(pairs),
    ]
    command += ["--config", "moondream_nano", "--output_dir", str(out)]
    command += ["--max_steps", str(steps), "--eval_strategy", "no", "--load_best_model_at_end", "False"]
    command += ["--save_strategy", "no", "--report_to", "none", "--use_cpu", "True"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return next(float(entry["train_runtime"]) for entry in history if "train_runtime" in entry)


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    cores = len(os.sched_getaffinity(0))
    records = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs"
        save_toy_pairs(pairs, n_train=64, n_validation=4)
        for others in (0, 1):
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            with busy(others):
                for repeat in range(config.repeats):
                    for name, way in WAYS.items():
                        out = Path(folder) / f"{others}-{repeat}-{name}"
                        seconds[name].append(training_seconds(pairs, out, config.steps, way))
                        print(f"{others} other busy processes, {name}: {seconds[name][-1]:.1f} s", flush=True)
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            records.append(
                {
                    "bench": "waiting",
                    "setting": {"steps": config.steps, "threads": cores, "other_busy_processes": others},
                    "ratio": round(medians["plain"] / medians["ours"], 3),
                    "ceiling": None,
                    "seconds": {name: round(value, 2) for name, value in medians.items()},
                    "against": "OpenMP's default of 300,000 spins",
                    "command": " ".join(["python", "tests/bench/waiting.py", *argv]),
                    "commit": git_commit(),
                    "device": machine_name("cpu"),
                }
            )
            print(f"{others} other busy processes: {records[-1]['ratio']:.2f}x of the default's speed")
    if config.out:
        write_json(config.out, records)


if __name__ == "__main__":
    run_main(main)
