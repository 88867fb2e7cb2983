"""The nano family at full length on a GPU: pretraining, and the finetuning on CIFAKE that it is for.

    python tests/gpu/nano.py --out eval/results/gpu/nano.json [--parts moondream lora] [--folder runs/nano_gpu]
    python tests/gpu/nano.py --device cpu --size small          # the same code, a few steps of each

Parts are the programs that a user runs, with the steps of `STEPS`: `recipes/nano_pretrain.py` (moondream from nothing,
tinyllava from that moondream, sd35 from the installed one), and the LoRA recipes on the installed moondream and
TinyLLaVA. Photographs come from $VLM_DETECT_DATA/cifake or the Hub, the finetuning's images from `--data`. What was
trained stays in `--folder`, and the same command resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measuring import Machine, Parts, record, write

from tests.cnn.toys import save_images
from vlm_detect.config import REPOSITORY, parse_config
from vlm_detect.errors import UserError, run_main

PARTS = ("moondream", "tinyllava", "sd35", "lora", "lora_tinyllava")
STEPS = {  # section: steps and images a step
    "judge": (8000, 128),
    "tower": (12000, 128),
    "captioner": (8000, 64),
    "tinyllava": (4000, 64),
    "renderer": (15000, 128),
    "lora": (6000, 32),
}
SMALL = 2  # steps of everything at small size


@dataclass(frozen=True)
class Nano(Machine):
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Of {', '.join(PARTS)}."})
    data: str = field(default="data/cifake", metadata={"help": "The image dataset to finetune on."})
    photos: str | None = field(default=None, metadata={"help": "Photographs to pretrain on. Default: the recipe's."})
    folder: str = field(default="runs/nano_gpu", metadata={"help": "Where runs are kept."})

    def check(self) -> None:
        super().check()
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise UserError(f"--parts {' '.join(unknown)}: choose from {', '.join(PARTS)}")


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Nano], argv, doc=__doc__)
    machine.check()
    if machine.size == "small":
        made = save_images(Path(machine.folder) / "images", n=1200)
        machine = replace(machine, data=str(made), photos=str(made / "data"))
    records: list[dict[str, Any]] = []
    parts = Parts()
    for part in machine.parts:
        run = Path(machine.folder) / part
        command = finetuning(machine, part, run) if part.startswith("lora") else pretraining(machine, part, run)
        started = time.perf_counter()
        with parts.part(part):
            subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, check=True)
            wall = round(time.perf_counter() - started, 1)
            figures = {"part": part, "wall_seconds": wall, "figures": found(part, run)}
            records.append(record(machine, "nano", argv, **figures, ran=" ".join(["python", *map(str, command)])))
            print(f"{part}: {wall} s", flush=True)
            write(machine, records)  # after each: what was measured outlives a run that is cut off
    parts.check()


def pretraining(machine: Nano, part: str, run: Path) -> list[Any]:
    """Arguments of python for one run of the pretraining recipe."""
    config, sections, init = {
        "moondream": ("nano_moondream", ("judge", "tower", "captioner"), []),
        "tinyllava": ("nano_tinyllava", ("judge", "tinyllava"), ["--init", run.parent / "moondream"]),
        "sd35": ("nano_sd35_more", ("judge", "renderer"), []),
    }[part]
    command: list[Any] = ["recipes/nano_pretrain.py", "--config", config, "--output_dir", run]
    command += ["--figures_dir", run / "figures", "--device", machine.device, *init]
    command += ["--data", machine.photos] if machine.photos else []
    settings: list[Any] = []
    for section in sections:
        steps, batch = STEPS[section]
        settings += [f"--{section}.steps", steps_of(machine, steps)]
        settings += [f"--{section}.batch", batch] if machine.size == "full" else []
    settings += ["--judge.renders", 100] if machine.size == "small" else []
    return [*command, *settings]


def finetuning(machine: Nano, part: str, run: Path) -> list[Any]:
    """Arguments of python for one run of a LoRA recipe."""
    family = "tinyllava" if part == "lora_tinyllava" else "moondream"
    config = f"{family}_nano_cifake"
    command: list[Any] = [f"recipes/{family}_lora.py", "--config", config, "--data", machine.data, "--output_dir", run]
    command += ["--max_steps", steps_of(machine, STEPS["lora"][0]), "--report_to", "none"]
    if machine.size == "small":
        return [*command, "--validation_limit", 4, "--per_device_train_batch_size", 1]
    return [*command, "--use_cpu", machine.device == "cpu", "--attention", "sdpa"]


def steps_of(machine: Machine, steps: int) -> int:
    return SMALL if machine.size == "small" else steps


def found(part: str, run: Path) -> dict[str, Any]:
    """What the run recorded: its figures, or the scores on the validation split."""
    if part.startswith("lora"):
        return json.loads((run / "run.json").read_text(encoding="utf-8"))["validation"]
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "figures").glob("*.json"))
    }


if __name__ == "__main__":
    run_main(main)
