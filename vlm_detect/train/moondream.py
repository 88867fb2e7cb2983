"""Finetune moondream2 with LoRA to tell AI images from photos.

    vlm-detect train moondream                                   # the largest model that fits this machine
    vlm-detect train moondream --config moondream_lora --data data/pairs
    vlm-detect train moondream --config moondream_nano

With no dataset in data/pairs and no --data, pairs are made from the bundled photos first. Output in --output_dir: the
adapter in PEFT's layout, the processor, calibration.json, run.json, trainer_state.json, checkpoints and a model card.
The same command resumes an interrupted run, or says that nothing is left to do.

On all GPUs: accelerate launch --quiet -m vlm_detect.train.moondream (in a clone: recipes/moondream_lora.py)
with the same flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_detect.errors import run_main
from vlm_detect.train.command import Options, each_seed
from vlm_detect.train.options import TrainOptions


@dataclass
class MoondreamOptions(TrainOptions):
    output_dir: str | None = field(default="runs/moondream_lora", metadata={"help": "The run directory."})


def parse(argv: Sequence[str], doc: str | None = __doc__, *, has_launch: bool = False) -> Options:
    return Options.parse(argv, doc=doc, training=MoondreamOptions, nano_config="moondream_nano", has_launch=has_launch)


def main(argv: list[str]) -> None:
    options = parse(argv)
    from vlm_detect.train.program import finetune  # lazy: imports torch, which --help does not need

    each_seed(options, finetune)


if __name__ == "__main__":
    run_main(main)
