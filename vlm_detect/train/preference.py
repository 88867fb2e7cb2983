"""Tune a model's explanations by preference: what was checked against the same with a fault (DPO, by TRL).

    vlm-detect train preference --model runs/moondream_lora --data data/pairs_reasons
    vlm-detect train preference --config preference_nano --data data/cifake_reasons

The dataset needs reasons (vlm-detect add-reasons). Of each image with a checked one a preference is made: chosen is the
verdict with its strongest reasons, rejected the same with a wrong place, with a reason left out, with another image's
reason that is false here, with a fault on a photo, or under the other verdict. No annotator: what is rejected is false
by the image's own measurements. --model names a run whose adapter goes on learning (its own LoRA settings count), or a
model that gets a new adapter. What comes out in --output_dir is as of the other trainings, with preferences.parquet.
Every flag of TRL's DPOConfig works.

On all GPUs: accelerate launch -m vlm_detect.train.preference (in a clone: recipes/preference_lora.py), the same flags.
"""

from __future__ import annotations

import os

from vlm_detect.errors import run_main
from vlm_detect.train.command import each_seed
from vlm_detect.train.preference_run import PreferenceRun


def main(argv: list[str]) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is made
    options = PreferenceRun.parse(argv, __doc__)
    from vlm_detect.train.preference_program import prefer  # late: with torch, which --help does without

    each_seed(options, prefer)


if __name__ == "__main__":
    run_main(main)
