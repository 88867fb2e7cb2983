"""The CNN baselines on a GPU: ResNet-18 with two heads on all of CIFAKE to its best, then every other architecture.

    python tests/gpu/cnn.py --out eval/results/gpu/cnn.json [--archs resnet18] [--epochs 30] [--data data/cifake]
    python tests/gpu/cnn.py --device cpu --size small          # the same code on made images, mai alone

Each is `recipes/cnn.py` with `cnn_resnet18_gpu.yaml` (bfloat16, compiled, pixels on the GPU), in a process of its own;
the records hold the accuracy of each head, the seconds and the curve over the epochs. Where `--data` does not exist,
CIFAKE is imported from $VLM_DETECT_DATA first. `frozen` is left out: it needs weights from the Hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import Machine, Parts

from tests.cnn.toys import save_images
from vlm_detect.config import REPOSITORY, parse_config, write_json
from vlm_detect.errors import UserError, run_main

OTHERS = ["resnet50", "npr", "fakenet2", "flux_small", "fakenet", "mai"]
CONFIG = REPOSITORY / "recipes" / "configs" / "cnn_resnet18_gpu.yaml"


@dataclass(frozen=True)
class CnnMachine(Machine):
    archs: list[str] = field(default_factory=lambda: ["resnet18", *OTHERS])
    data: str = field(default="data/cifake", metadata={"help": "The image dataset; imported where it is not there."})
    epochs: int = field(default=30, metadata={"help": "Of resnet18; the others have a third of them."})


def main(argv: list[str]) -> None:
    (machine,) = parse_config([CnnMachine], argv, doc=__doc__)
    machine.check()
    records: list[dict[str, Any]] = []
    parts = Parts()
    with tempfile.TemporaryDirectory() as temporary:
        data = dataset(machine, Path(temporary))
        for arch in machine.archs if machine.size == "full" else ["mai"]:
            epochs = machine.epochs if arch == "resnet18" else max(1, machine.epochs // 3)
            with parts.part(arch):
                records.append(train(machine, arch, epochs, data, Path(temporary)))
                print(f"{arch}: {records[-1]['accuracy']:.4f} in {records[-1]['seconds']} s", flush=True)
                if machine.out:  # after each: what was measured stays when the time runs out
                    write_json(machine.out, records)
    parts.check()


def dataset(machine: CnnMachine, folder: Path) -> str:
    if machine.size == "small":
        return str(save_images(folder / "set"))
    if not Path(machine.data).exists():
        source = Path(os.environ.get("VLM_DETECT_DATA", "")) / "cifake"
        if "VLM_DETECT_DATA" not in os.environ or not source.is_dir():
            raise UserError(f"--data {machine.data}: not there, and no cifake/ in a folder that $VLM_DETECT_DATA names")
        program = str(REPOSITORY / "data_gen" / "import_images.py")
        command = [sys.executable, program, "--from", "cifake", str(source), "--out", machine.data]
        subprocess.run([*command, "--test", "0", "--validation", "0.1013"], check=True)
    return machine.data


def train(machine: CnnMachine, arch: str, epochs: int, data: str, folder: Path) -> dict[str, Any]:
    """One run of the recipe; its record, with the curve."""
    run, figures = folder / arch, folder / f"{arch}.json"
    flags: dict[str, Any] = {"arch": arch, "data": data, "num_train_epochs": epochs, "output_dir": run}
    flags |= {"figures": figures, "pixels_dir": folder / "pixels", "report_to": "none"}
    if machine.device == "cpu":
        flags |= {"use_cpu": True, "bf16": False, "tf32": False, "torch_compile": False, "resident": False}
        flags |= {"per_device_train_batch_size": 16}
    program = str(REPOSITORY / "recipes" / "cnn.py")
    command = [sys.executable, program, "--config", str(CONFIG)]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        raise UserError(f"{arch}: its training failed, see above")
    (record,) = json.loads(figures.read_text(encoding="utf-8"))
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    names = ("epoch", "eval_verdict_accuracy", "eval_object_accuracy", "eval_log_loss")
    curve = [{name: round(entry[name], 5) for name in names} for entry in history if "eval_object_accuracy" in entry]
    return {**record, "curve": curve, "dtype": str(machine.dtype).removeprefix("torch.")}


if __name__ == "__main__":
    run_main(main)
