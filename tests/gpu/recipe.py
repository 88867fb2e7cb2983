"""The LoRA recipe as a user runs it, at moondream2's sizes: images/s and peak memory, validation included.

    python tests/gpu/recipe.py --out eval/results/gpu/recipe.json             # on a GPU, about two minutes
    python tests/gpu/recipe.py --device cpu --size small                      # the same code in seconds

A checkpoint of random weights and a dataset of noisy pairs are written to a temporary folder, and
`recipes/moondream_lora.py` reads them in a process of its own: as they are, and with `--quantize nf4`. Rates and peak
are those that the recipe prints last, after a validation and a checkpoint.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from measuring import Machine, Parts, random_moondream, record, write

from tests.train.toys import toy_image, toy_pair
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.config import REPOSITORY, parse_config
from vlm_detect.errors import UserError, run_main

WAYS = {"lora": [], "nf4": ["--quantize", "nf4"]}
PROGRESS = re.compile(r"([\d.]+) images/s .*?([\d.]+) tokens/s .*?([\d.]+) GB peak")


@dataclass(frozen=True)
class Recipe(Machine):
    steps: int = field(default=12, metadata={"help": "Steps; validation and a checkpoint come after half of them."})
    batch: int = field(default=4, metadata={"help": "Pairs a step."})
    side: int = field(default=700, metadata={"help": "Pixels of an image's side: 700 makes ten crops."})


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Recipe], argv, doc=__doc__)
    machine.check()
    records: list[dict[str, Any]] = []
    parts = Parts()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vlm = random_moondream(machine)
        vlm.model.save_pretrained(folder / "model")
        vlm.processor.save_pretrained(folder / "model")
        del vlm
        save_pairs(folder / "pairs", machine)
        for way, flags in WAYS.items():
            if way == "nf4" and machine.device == "cpu":
                continue  # tested on the CPU elsewhere (tests/models/test_moondream_tuning)
            with parts.part(way):
                figures = train(machine, folder, way, flags)
                print(f"{way}: {figures}", flush=True)
                records.append(record(machine, "recipe", argv, bench="recipe", way=way, **figures))
                write(machine, records)
    parts.check()


def save_pairs(folder: Path, machine: Recipe) -> None:
    """Enough pairs for the steps, and a few for validation."""
    side = machine.side if machine.size == "full" else 32
    (folder / "data").mkdir(parents=True)
    for split, n, seed in (("train", machine.steps * machine.batch, 0), ("validation", 16, 1), ("test", 2, 2)):
        rng = np.random.default_rng(seed)
        rows = [toy_pair(i, rng, image=toy_image(False, rng, side), twin=toy_image(True, rng, side)) for i in range(n)]
        Dataset.from_list(rows, features=PAIR_FEATURES).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def train(machine: Recipe, folder: Path, way: str, flags: list[str]) -> dict[str, Any]:
    """What the recipe prints at its last step: images/s, tokens/s, GB at most."""
    program = str(REPOSITORY / "recipes" / "moondream_lora.py")
    options: dict[str, Any] = {"model": folder / "model", "data": folder / "pairs", "output_dir": folder / way}
    options |= {"max_steps": machine.steps, "per_device_train_batch_size": machine.batch, "logging_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": machine.steps // 2, "save_strategy": "steps"}
    options |= {"save_steps": machine.steps // 2, "fit_head": False, "use_cpu": machine.device == "cpu"}
    command = [sys.executable, program, *flags]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise UserError(f"the recipe failed with {way}: {done.stderr.strip().splitlines()[-1:]}")
    images, tokens, peak = (float(x) for x in PROGRESS.findall(done.stdout + done.stderr)[-1])
    return {"images_per_s": images, "tokens_per_s": tokens, "peak_gb": peak, "steps": machine.steps}


if __name__ == "__main__":
    run_main(main)
