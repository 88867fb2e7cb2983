"""Tune a model's explanations by preference: checked explanations over the same ones with a fault.

    accelerate launch --quiet recipes/preference_lora.py --model runs/moondream_lora --data data/pairs_reasons

The program is vlm_detect/train/preference.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.train.preference import main

if __name__ == "__main__":
    run_main(main)
