"""The complete workflow on bundled photographs with the nano models: what `make demo` runs, and a template for real
use.

    vlm-detect demo [--out runs/demo]          # in a clone: python recipes/demo.py

Every step is the verb that a GPU user runs, with small configs; the commands are printed, so that they can be run by
hand. A step whose result exists is skipped, so a second run takes seconds. Nothing here detects anything in the wild.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.extras import require


@dataclass(frozen=True)
class Config:
    out: str = field(default="runs/demo", metadata={"help": "Folder for all output of the demo."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    require("demo", "diffusers", "imagehash", "skimage")
    from vlm_detect.apps.demo_steps import run_demo  # lazy: imports torch, which --help does not need

    run_demo(Path(config.out))


if __name__ == "__main__":
    run_main(main)
