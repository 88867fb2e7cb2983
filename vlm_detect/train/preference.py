"""Tune explanations by preference (DPO, with TRL): checked explanations against the same with a fault.

    vlm-detect train preference --model runs/moondream_lora --data data/pairs_reasons
    vlm-detect train preference --config preference_nano --data data/cifake_reasons

The dataset needs reasons (vlm-detect add-reasons). Each image with a checked reason gives a preference: chosen is the
verdict with its strongest reasons, rejected the same with a wrong place, with a missing reason, with a reason of
another image that is false here, with a fault attributed to a photo, or under the opposite verdict. No annotator is
needed: rejected explanations are false by the image's own measurements. --model is a run whose adapter continues
training (with its LoRA settings), or a model that gets a new adapter. The output is that of the other training verbs,
plus preferences.parquet. Every flag of TRL's DPOConfig is accepted.

On all GPUs: accelerate launch --quiet -m vlm_detect.train.preference (in a clone: recipes/preference_lora.py)
with the same flags.
"""

from __future__ import annotations

import os

from vlm_detect.errors import run_main
from vlm_detect.train.command import each_seed
from vlm_detect.train.preference_run import PreferenceRun


def main(argv: list[str]) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every trainer that is created
    options = PreferenceRun.parse(argv, __doc__)
    from vlm_detect.train.preference_program import prefer  # lazy: imports torch, which --help does not need

    each_seed(options, prefer)


if __name__ == "__main__":
    run_main(main)
